"""Choose the input sizes at which an explaining graph is compared with its network."""

from __future__ import annotations

from dataclasses import replace

from .dims import CLASSES, lengths_at
from .plain_model import PlainModel
from .tensors import Tensor
from .verify_subject import Subject


def subjects_of_all_sizes(
    subject: Subject, plain: PlainModel, tensors: dict[str, Tensor]
) -> list[Subject]:
    """List a graph for each size at which it is compared: its own, or three where it takes many.

    Args:
        subject: the graph; ``manifest`` describes it for all sizes.
        plain: the network.
        tensors: the graph's outputs by contract name.
    """
    subjects = []
    for lengths in [plain.shapes.one] if plain.sizes is None else plain.sizes.checked:
        height, width = lengths_at(plain.input_dims, lengths)
        known = {**lengths, "C": subject.manifest.num_classes}
        outputs = {
            name: tuple(
                None if side == CLASSES else lengths_at([side], known)[0]
                for side in tensor.shape[1:]
            )
            for name, tensor in tensors.items()
        }
        manifest = subject.manifest.at((height, width))
        subjects.append(replace(subject, manifest=manifest, outputs=outputs, size=(height, width)))
    return subjects
