"""Files that JAX and Keras 3 write, explained without their code: does each come out right?

    pip install jax2onnx flax keras
    python benchmarks/foreign_files.py -o files/

Networks have random weights. Of each file: whether ONNX Runtime computes what the framework did,
whether export accepts it, the target layer, and how far the gradients lie from central differences
in float64. Of networks that are written NHWC and NCHW, whether both files give the same maps.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.table import Table
from timing import console

from whycam import WhyCamError
from whycam.export import Overrides, to_onnx

KERAS = ("MobileNetV3Small", "EfficientNetV2B0", "ResNet50V2")
SIDE = 96  # of Keras's images
COLUMNS = ("file", "own outputs", "target layer", "gradients", "maps, NHWC to NCHW", "seconds")


def keras_files(folder: Path) -> None:
    """Write networks of ``keras.applications`` by Keras's own ONNX export, on its torch backend."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras  # type: ignore[import-not-found]

    rng = np.random.default_rng(0)
    for name in KERAS:
        model = getattr(keras.applications, name)(
            weights=None, input_shape=(SIDE, SIDE, 3), classes=10
        )
        for variable in model.weights:  # batch normalisation as training leaves it
            if "moving_mean" in variable.path:
                variable.assign(rng.normal(0, 0.1, variable.shape).astype(np.float32))
            if "moving_variance" in variable.path:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))
        images = rng.uniform(0, 1, (2, SIDE, SIDE, 3)).astype(np.float32)
        answers = np.asarray(model(images, training=False).detach())
        model.export(str(folder / f"keras_{name}.onnx"), format="onnx", verbose=False)
        np.savez(folder / f"keras_{name}.npz", x=images, y=answers)


def jax_networks() -> dict[str, tuple[Callable[[Any], Any], tuple[int, int, int]]]:
    """Three small flax networks, with the shape of their image [H, W, C]."""
    import jax.numpy as jnp  # type: ignore[import-not-found]
    from flax import nnx  # type: ignore[import-not-found]

    rngs = nnx.Rngs(0)

    def conv(inner: int, outer: int, side: int = 3, **options: Any) -> Any:
        return nnx.Conv(inner, outer, (side, side), rngs=rngs, **options)

    def norm(channels: int) -> Any:
        return nnx.BatchNorm(channels, use_running_average=True, rngs=rngs)

    class Block(nnx.Module):  # type: ignore[misc]
        def __init__(self, inner: int, outer: int, stride: int) -> None:
            self.first = conv(inner, outer, strides=stride, use_bias=False)
            self.second = conv(outer, outer, use_bias=False)
            self.shortcut = conv(inner, outer, 1, strides=stride, use_bias=False)
            self.norm1, self.norm2 = norm(outer), norm(outer)

        def __call__(self, x: Any) -> Any:
            y = self.norm2(self.second(nnx.relu(self.norm1(self.first(x)))))
            return nnx.relu(y + self.shortcut(x))

    class Residual(nnx.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.stem = conv(3, 16, strides=2)
            self.one, self.two = Block(16, 32, 2), Block(32, 64, 2)
            self.head = nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.head(jnp.mean(self.two(self.one(nnx.relu(self.stem(x)))), axis=(1, 2)))

    class Depthwise(nnx.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.stem = conv(3, 32, 4, strides=4, padding="VALID")
            self.depthwise = conv(32, 32, 7, feature_group_count=32)
            self.norm = nnx.LayerNorm(32, rngs=rngs)
            self.wide, self.narrow = nnx.Linear(32, 128, rngs=rngs), nnx.Linear(128, 32, rngs=rngs)
            self.groups = nnx.GroupNorm(32, num_groups=4, rngs=rngs)
            self.head = nnx.Linear(64, 7, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.stem(x)
            inside = nnx.gelu(self.wide(self.norm(self.depthwise(x))), approximate=False)
            x = nnx.silu(self.groups(x + self.narrow(inside)))
            both = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], -1)
            return nnx.softmax(self.head(both))

    class Flattened(nnx.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.first, self.second = conv(1, 16), conv(16, 32)
            self.wide = nnx.Linear(32 * 8 * 8, 64, rngs=rngs)
            self.head = nnx.Linear(64, 5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for layer, act in ((self.first, nnx.relu), (self.second, nnx.hard_swish)):
                x = nnx.max_pool(act(layer(x)), window_shape=(2, 2), strides=(2, 2))
            return nnx.sigmoid(self.head(nnx.relu(self.wide(x.reshape(x.shape[0], -1)))))

    return {
        "residual": (Residual(), (64, 64, 3)),
        "depthwise": (Depthwise(), (64, 64, 3)),
        "flattened": (Flattened(), (32, 32, 1)),
    }


def jax_files(folder: Path) -> None:
    """Write each flax network twice by jax2onnx: its image NHWC, and NCHW."""
    import jax2onnx  # type: ignore[import-not-found]

    rng = np.random.default_rng(0)
    for name, (model, shape) in jax_networks().items():
        images = rng.normal(size=(2, *shape)).astype(np.float32)
        answers = np.asarray(model(images))
        for layout in ("nhwc", "nchw"):
            path = folder / f"jax_{name}_{layout}.onnx"
            jax2onnx.to_onnx(
                model,
                inputs=[("B", *shape)],
                return_mode="file",
                output_path=str(path),
                **({"inputs_as_nchw": [0]} if layout == "nchw" else {}),
            )
            given = images if layout == "nhwc" else images.transpose(0, 3, 1, 2)
            np.savez(path.with_suffix(".npz"), x=np.ascontiguousarray(given), y=answers)


def maps_of(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Grad-CAM of the most probable class, [N, H, W]."""
    session = onnxruntime.InferenceSession(path)
    image, target = (entry.name for entry in session.get_inputs())
    feeds = {image: images, target: np.full((len(images), 1), -1, np.int64)}
    (maps,) = session.run(["maps"], feeds)
    return np.asarray(maps[:, 0])


def explain(path: Path) -> dict[str, Any]:
    """Export one file and compare."""
    recorded = np.load(path.with_suffix(".npz"))
    session = onnxruntime.InferenceSession(path)
    (answers,) = session.run(None, {session.get_inputs()[0].name: recorded["x"]})
    row: dict[str, Any] = {
        "file": path.name,
        "own outputs": float(np.abs(answers - recorded["y"]).max()),
    }
    target = path.parent / "explained" / path.name
    target.parent.mkdir(exist_ok=True)
    begin = time.perf_counter()
    try:
        made = to_onnx(path, target, overrides=Overrides(preprocess="raw"), map_methods=["gradcam"])
    except WhyCamError as error:
        return row | {"refused": str(error)}
    return row | {
        "seconds": time.perf_counter() - begin,
        "target layer": made.manifest.target_layer,
        "gradients": made.verification.worst["differences"],
        "maps": maps_of(target, recorded["x"]).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the files")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    keras_files(folder)
    jax_files(folder)
    rows = [explain(path) for path in sorted(folder.glob("*.onnx"))]
    maps = {row["file"]: row.pop("maps", None) for row in rows}
    for row in rows:
        other = maps.get(str(row["file"]).replace("_nhwc", "_nchw"))
        if "_nhwc" in row["file"] and other is not None and maps[row["file"]] is not None:
            row["maps, NHWC to NCHW"] = float(np.abs(np.subtract(maps[row["file"]], other)).max())
    table = Table(*COLUMNS)
    for row in rows:
        cells = [
            row.get(name, row.get("refused", "") if name == "target layer" else "")
            for name in COLUMNS
        ]
        table.add_row(*(f"{cell:.2g}" if isinstance(cell, float) else str(cell) for cell in cells))
    console.print(table)
    (folder / "foreign_files.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
