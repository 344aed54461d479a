"""Of every operator that has a gradient rule, some graphs that use it alone."""

from __future__ import annotations

from gradients import Case

from .attention import attention
from .elementwise import elementwise
from .normalisation import normalisation
from .pooling import pooling
from .products import products
from .reductions import reductions
from .selection import selection
from .shaping import shaping

CASES: dict[str, list[Case]] = {
    **elementwise(),
    **products(),
    **attention(),
    **pooling(),
    **reductions(),
    **normalisation(),
    **shaping(),
    **selection(),
}
CASES["DequantizeLinear"] = CASES["QuantizeLinear"]
