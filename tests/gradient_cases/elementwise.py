"""Operators that work element by element."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from gradients import Case, in_double, node, normal, numbers, positive, ties, weights

FLAT, PLACES = (5,), (4, 6, 5)


def half_zero(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    return np.where(rng.random(shape) < 0.5, 0.0, positive(rng, shape))


def one(kind: str, function=None, shape=FLAT, draw=normal, opset=20, **attributes) -> list[Case]:
    """One operator of one input."""
    return [Case([node(kind, **attributes)], {"x": shape}, {}, function, draw, opset)]


def two(kind: str, function) -> list[Case]:
    """An operator of two inputs: both of images, one a constant, broadcast, of one rank less."""
    each = node(kind, "x x1")
    cases = [
        Case([each], {"x": a, "x1": b}, {}, function, positive)
        for a, b in (
            ((3, 4), (3, 4)),
            ((3, 1), (1, 4)),
            ((3, 4, 2), (1, 1, 1)),
        )
    ]
    for shape in ((), (1,), (4,), (3, 1), (1, 3, 4)):
        constant = np.abs(weights(*shape)) + np.float32(0.5)
        tensor = torch.tensor(constant, dtype=torch.float64)
        cases.append(
            Case(
                [each],
                {"x": (3, 4)},
                {"x1": constant},
                lambda x, t=tensor: function(x, t),
                positive,
            )
        )
        flipped = node(kind, "x1 x")
        cases.append(
            Case(
                [flipped],
                {"x": (3, 4)},
                {"x1": constant},
                lambda x, t=tensor: function(t, x),
                positive,
            )
        )
    same = Case([node(kind, "x x")], {"x": (3, 4)}, {}, lambda x: function(x, x), positive)
    return [*cases, same]


def first_of(*tensors: torch.Tensor, sign: float) -> torch.Tensor:
    """Max or Min of several, where of equal ones the first counts."""
    whole = torch.stack(torch.broadcast_tensors(*tensors))
    index = torch.from_numpy(np.argmax(sign * whole.detach().numpy(), axis=0))
    return whole.gather(0, index[None])[0]


def extreme(kind: str, sign: float) -> list[Case]:
    constant = weights(4)

    def of(*tensors: torch.Tensor) -> torch.Tensor:
        return first_of(*tensors, sign=sign)

    three = {"x": (3, 4), "x1": (1, 4), "x2": (3, 4)}
    tensor = torch.tensor(constant, dtype=torch.float64)
    return [Case([node(kind, "x x1 x2")], three, {}, of, draw) for draw in (normal, ties)] + [
        Case([node(kind, "x c")], {"x": (3, 4)}, {"c": constant}, lambda x: of(x, tensor)),
        Case([node(kind, "c x")], {"x": (3, 4)}, {"c": constant}, lambda x: of(tensor, x)),
        Case([node(kind, "x")], {"x": (3, 4)}, {}, of),
    ]


def elementwise() -> dict[str, list[Case]]:
    scalar = [np.array(value, np.float32) for value in (2.0, 3.0, 0.5, 0.0, 1.0, -1.5)]
    slopes, power = weights(3, 1), node("Pow", "x p")
    condition, big = (
        np.random.default_rng(1).random((3, 4)) > 0.5,
        np.array(3.4028235e38, np.float32),
    )
    bounds = {"lo": np.array(-0.5, np.float32), "hi": np.array(0.8, np.float32), "big": big}
    scale, zero = np.array(0.1, np.float32), np.array(0, np.int8)
    return {
        "Sigmoid": one("Sigmoid", torch.sigmoid),
        "Tanh": one("Tanh", torch.tanh),
        "Exp": one("Exp", torch.exp),
        "Log": one("Log", torch.log, draw=positive),
        # Zeros, of which autograd's derivative is infinite, have none: sqrt(0) as a channel has it
        # that is dead.
        "Sqrt": one("Sqrt", torch.sqrt, draw=positive)
        + one("Sqrt", lambda x: torch.where(x > 0, x, 1).sqrt() * (x > 0), draw=half_zero),
        "Reciprocal": one("Reciprocal", torch.reciprocal, draw=positive),
        "Erf": one("Erf", torch.erf),
        "Softplus": one("Softplus", F.softplus),
        "Softsign": one("Softsign", F.softsign),
        "Abs": one("Abs", torch.abs),
        "Sin": one("Sin", torch.sin),
        "Cos": one("Cos", torch.cos),
        "Gelu": one("Gelu", F.gelu)
        + one("Gelu", lambda x: F.gelu(x, approximate="tanh"), approximate="tanh"),
        "HardSwish": one("HardSwish", F.hardswish, draw=lambda r, s: 3 * normal(r, s)),
        "HardSigmoid": one(
            "HardSigmoid", F.hardsigmoid, draw=lambda r, s: 3 * normal(r, s), alpha=1 / 6
        ),
        "Elu": one("Elu", lambda x: F.elu(x, 0.7), alpha=0.7),
        "Selu": one("Selu", F.selu),
        "Celu": one("Celu", lambda x: F.celu(x, 0.6), alpha=0.6),
        "Mish": one("Mish", F.mish),
        "Swish": one("Swish", F.silu, opset=24)
        + one("Swish", lambda x: x * torch.sigmoid(1.3 * x), opset=24, alpha=1.3),
        "Relu": one("Relu", torch.relu) + one("Relu", torch.relu, draw=ties),
        "ThresholdedRelu": one("ThresholdedRelu", lambda x: F.threshold(x, 0.4, 0.0), alpha=0.4),
        "LeakyRelu": one("LeakyRelu", lambda x: F.leaky_relu(x, 0.2), alpha=0.2),
        "PRelu": [
            Case(
                [node("PRelu", "x s")],
                {"x": (3, 4)},
                {"s": slopes},
                lambda x: torch.where(x > 0, x, x * in_double(slopes)),
            ),
        ],
        "Clip": [
            Case([node("Clip", "x lo hi")], {"x": FLAT}, bounds, lambda x: x.clamp(-0.5, 0.8)),
            Case([node("Clip", "x lo")], {"x": FLAT}, bounds, lambda x: x.clamp(min=-0.5)),
            Case([node("Clip", "x _ hi")], {"x": FLAT}, bounds, lambda x: x.clamp(max=0.8)),
            Case([node("Clip", "x lo big")], {"x": FLAT}, bounds, lambda x: x.clamp(min=-0.5)),
            Case([node("Clip")], {"x": FLAT}, {}, lambda x: x * 1),
        ],
        "Identity": one("Identity", lambda x: x * 1),
        "Dropout": one("Dropout", lambda x: x * 1),
        "Cast": [
            Case([node("Cast", to=1)], {"x": FLAT}, {}, lambda x: x * 1),
            Case(
                [
                    node("Cast", "x", "a", to=10),
                    node("Mul", "a a", "b"),
                    node("Cast", "b", "y", to=1),
                ],
                {"x": FLAT},
                {},
                lambda x: x * x,
                tolerance=3e-3,
            ),
            # A mask of comparisons, as splines and thresholds have it, is constant.
            Case(
                [
                    node("Greater", "x lo", "above"),
                    node("Less", "x hi", "below"),
                    node("And", "above below", "inside"),
                    node("Cast", "inside", "mask", to=1),
                    node("Mul", "mask x", "y"),
                ],
                {"x": FLAT},
                bounds,
                lambda x: ((x > -0.5) & (x < 0.8)) * x,
            ),
            # The sign is constant, as in second-order pooling: sign(x) sqrt(|x|).
            Case(
                [
                    node("Cast", "x", "a", to=1),
                    node("Sign", "a", "s"),
                    node("Mul", "s a", "y"),
                ],
                {"x": FLAT},
                {},
                torch.abs,
            ),
        ],
        "CastLike": [
            Case([node("CastLike", "x like")], {"x": FLAT}, {"like": scale}, lambda x: x * 1)
        ],
        "Neg": one("Neg", torch.neg),
        "Add": two("Add", torch.add),
        "Sub": two("Sub", torch.sub),
        "Mul": two("Mul", torch.mul),
        "Div": two("Div", torch.div),
        "Sum": [
            Case(
                [node("Sum", "x x1 c x")],
                {"x": (3, 4), "x1": (3, 1)},
                {"c": slopes},
                lambda x, x1: 2 * x + x1 + in_double(slopes),
            )
        ],
        "Mean": [
            Case(
                [node("Mean", "x x1 c x")],
                {"x": (3, 4), "x1": (1, 4)},
                {"c": slopes},
                lambda x, x1: (2 * x + x1 + in_double(slopes)) / 4,
            )
        ],
        "Pow": [
            Case(
                [power],
                {"x": FLAT},
                {"p": np.array(1 / 3, np.float32)},
                lambda x: torch.where(x > 0, x, 1) ** float(np.float32(1 / 3)) * (x > 0),
                half_zero,
            ),
            *(
                Case([power], {"x": FLAT}, {"p": p}, lambda x, p=p: x ** float(p), positive)
                for p in scalar
            ),
            Case(
                [power],
                {"x": (3, 4)},
                {"p": np.abs(slopes)},
                lambda x: x ** in_double(np.abs(slopes)),
                positive,
            ),
            Case([power], {"x": (3, 4)}, {"p": numbers(2)}, lambda x: x**2),
            Case(
                [power],
                {"x": (3, 4)},
                {"p": numbers(0, 1, 2, 3)},
                lambda x: x ** torch.arange(4),
                ties,
            ),
            Case(
                [node("Abs", "p", "q"), node("Pow", "x q")],
                {"x": (3, 4)},
                {"p": np.tile(slopes, (1, 1, 1))},
                lambda x: x ** in_double(np.abs(slopes)),
                positive,
            ),
        ],
        "Where": [
            Case(
                [node("Where", "c x x1")],
                {"x": (3, 4), "x1": (3, 1)},
                {"c": condition},
                lambda x, x1: torch.where(torch.tensor(condition), x, x1),
            ),
            Case(
                [node("Greater", "x o", "g"), node("Mul", "x x", "s"), node("Where", "g s x")],
                {"x": (3, 4)},
                {"o": np.zeros(1, np.float32)},
                lambda x: torch.where(x > 0, x * x, x),
            ),
        ],
        "Max": extreme("Max", 1.0),
        "Min": extreme("Min", -1.0),
        "QuantizeLinear": [
            Case(
                [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")],
                {"x": FLAT},
                {"s": scale, "z": zero},
                lambda x: x + ((x / in_double(scale)).round() * in_double(scale) - x).detach(),
                lambda r, s: r.uniform(-2, 2, s),
            ),
        ],
    }
