"""Options of thresholding maps, for verbs that explain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..runtime.errors import RequestError
from .options import ReadingOptions, require

if TYPE_CHECKING:
    from ..runtime.manifest import Manifest
    from ..runtime.tft import Tft


@dataclass(frozen=True)
class TftOptions(ReadingOptions):
    """Thresholding of the maps."""

    tft: Annotated[bool, typer.Option("--tft", help="Find the best threshold of each map.")] = False
    evaluations: Annotated[
        int | None,
        typer.Option(
            help="TFT: number of thresholds to try; needs whycam calibrate thresholds "
            "[default: the file's, or all]."
        ),
    ] = None
    naive: Annotated[
        bool,
        typer.Option("--naive", help="Mute the share of the map that is usual for the method."),
    ] = False

    def check(self) -> None:
        """Refuse options that exclude each other or need --tft."""
        settings = self.mask or self.thresholds or self.evaluations is not None
        if self.naive and self.tft:
            raise RequestError("--naive and --tft exclude each other")
        require("--mask, --thresholds or --evaluations", bool(settings), "--tft", self.tft)

    def thresholding(self, manifest: Manifest) -> Tft | Literal["naive"] | None:
        """Return what ``Explainer.explain`` takes as ``tft``."""
        if self.naive:
            return "naive"
        return self.reading(manifest.tft, self.evaluations) if self.tft else None
