"""Find the layer to explain: the default one, or the one that the user names."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ..runtime.errors import TargetLayerError
from .coarsest_layer import choose_coarsest_layer
from .data_flow import DataFlow, Layer
from .default_layer import choose_layer
from .heads import PlaceScores
from .plain_model import PlainModel

_LISTED = 8


class Network(DataFlow):
    """The data flow of a network, in which layers are found.

    Args:
        plain, logits, is_embedding: see ``DataFlow``.
        places: the class scores at every place, of a segmentation network; else None.
    """

    def __init__(
        self,
        plain: PlainModel,
        logits: ir.Value,
        is_embedding: bool = False,
        places: PlaceScores | None = None,
    ) -> None:
        super().__init__(plain, logits, is_embedding)
        self._of_places = places

    def find(self, name: str | None = None) -> Layer:
        """Find the target layer from the data flow, or the one that is called ``name``.

        Raises:
            TargetLayerError: there is none, or the named one cannot be the target layer.
        """
        if name is not None:
            return self.find_named(name)
        if self._of_places is None:
            layer, why = choose_layer(self)
        else:
            layer, why = choose_coarsest_layer(self, self._of_places.value)
        if layer is None:
            raise TargetLayerError(
                f"no target layer found: {why}. Name one with --target-layer; the model can be "
                f"explained at: {self.list_layers()}"
            )
        return layer

    def find_named(self, name: str) -> Layer:
        """Find the layer of a module, node or tensor by its name.

        Raises:
            TargetLayerError: it does not exist, has no places, or no gradient reaches them.
        """
        for candidate in self.layers:
            node = candidate.value.producer()
            if node is not None and name in (node.name, candidate.value.name, candidate.name):
                return candidate
        of_module = [node for node in self.path if name in self.modules[node]]
        of_name = (n for n in self.path if name in (n.name, *(v.name for v in n.outputs)))
        node = of_module[-1] if of_module else next(of_name, None)
        if node is None:
            raise TargetLayerError(
                f"the model has no layer '{name}'. It can be explained at: {self.list_layers()}"
            )
        layer = self.layer_at(node)
        if layer is not None and self.has_gradient(layer):
            return layer
        dims = self.plain.shapes.dims.get(node.outputs[0], ())[1:]
        why = (
            f"its output has no spatial extent (shape {dims} for one image): no channels at places "
            "of the image are proved"
            if layer is None
            else "the class scores have no gradient with respect to its places: what follows reads "
            "other elements, as a class token"
        )
        raise TargetLayerError(
            f"layer '{name}' cannot be the target layer: {why}. The model can be explained at: "
            f"{self.list_layers()}"
        )

    def find_earlier(self, layer: Layer, names: Sequence[str]) -> tuple[Layer, ...]:
        """Find layers before the target layer by name, in the network's order.

        Raises:
            TargetLayerError: one cannot be explained, is named twice, or is not before the target
                layer.
        """
        earlier = [self.find_named(name) for name in names]
        if len({other.value for other in earlier}) < len(earlier):
            raise TargetLayerError(
                f"the layers {', '.join(names)} are not {len(names)} different ones"
            )
        for other in earlier:
            if self.order(other) >= self.order(layer):
                raise TargetLayerError(
                    f"layer '{other.name}' is not before the target layer '{layer.name}': maps are "
                    "fused with those of earlier layers"
                )
        return tuple(sorted(earlier, key=self.order))

    def order(self, layer: Layer) -> int:
        """Return where on the path a layer is computed."""
        node = layer.value.producer()
        assert node is not None
        return self.position[node]

    def list_layers(self) -> str:
        """List in words the last layers that the model can be explained at."""
        layers = self.layers
        if not layers:
            return "no layer (none that everything passes through has places of the image)"
        last = layers[-_LISTED:]
        parts = [
            f"{layer.name} ({layer.op}, {' x '.join(map(str, layer.shape))})" for layer in last
        ]
        if len(layers) > len(last):
            parts.insert(0, f"{len(layers) - len(last)} earlier ones (--list-layers shows them)")
        return ", ".join(parts)
