"""Explain images with a pretrained network: what `make demo` runs.

Exports EfficientNet-Lite0, explains the images that come with scikit-image with the four
methods of the paper, finds each map's best threshold (TFT), and writes images to look at.
"""

import sys
from pathlib import Path

import skimage.data
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import whycam
from whycam.export import to_onnx

METHODS = ("gradcam", "gradcam++", "ablation", "layercam")
IMAGES = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")


def main(folder: Path) -> None:
    console = Console(highlight=False)
    model = folder / "lite0.onnx"
    console.print("exporting EfficientNet-Lite0 ...")
    made = to_onnx(
        f"{Path(__file__).with_name('efficientnet_lite0.py')}:model",
        model,
        labels="imagenet",
        methods=METHODS,
        step=lambda name: console.print(f"  {name}"),
    )
    console.print(
        f"{made.size / 1e6:.0f} MB in {made.seconds:.0f} s; gradients within "
        f"{made.verification.worst['gradients']:.0e} of PyTorch in float64\n"
    )

    explainer = whycam.load(model)
    images = [Path(skimage.data.__file__).parent / name for name in IMAGES]
    found = {method: explainer.explain(images, method=method, tft=True) for method in METHODS}

    table = Table("image", "class", "p", "method", "tau*", "p under the mask")
    for i, image in enumerate(images):
        for method in METHODS:
            e = found[method][i]
            tau = f"{e.threshold:.1f}" if e.improved else "none helps"
            after = f"{e.masked_probability:.3f}" if e.improved else "-"
            table.add_row(image.name, e.label, f"{e.probability:.3f}", method, tau, after)
            e.save(folder / f"{image.stem}.{method}.png", "figure")
        table.add_section()
    console.print(table)
    sheet = folder / "overview.png"
    overview(found).savefig(sheet, dpi=110, bbox_inches="tight")
    console.print(f"\nLook at {sheet} and the other images in {folder}/", soft_wrap=True)


def overview(found: dict[str, list[whycam.Explanation]]) -> Figure:
    """One row an image, one column a method, each map cut at its own best threshold."""
    rows = len(next(iter(found.values())))
    figure = Figure(figsize=(3 * (len(found) + 1), 2.5 * rows), layout="compressed")
    axes = figure.subplots(rows, len(found) + 1)
    for i in range(rows):
        first = next(iter(found.values()))[i]
        panels = [(first.image, f"{first.label} {first.probability:.2f}")]
        for method, e in found.items():
            tau = f"{e[i].threshold:.1f}" if e[i].improved else "none helps"
            panels.append((e[i].overlay(), f"{method}  τ* {tau}"))
        for axis, (image, title) in zip(axes[i], panels, strict=True):
            axis.imshow(image)
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".demo"))
