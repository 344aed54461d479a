"""Explain images with a pretrained network: what `make demo` runs.

Exports EfficientNet-Lite0, explains images that come with scikit-image with the four methods of
the paper, finds each map's best threshold (TFT), and writes images to look at. In one image are a
cat and a cup of coffee, and each of them is asked for.
"""

import sys
from pathlib import Path

import skimage.data
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

import whycam
from whycam.export import to_onnx

METHODS = ("gradcam", "gradcam++", "ablation", "layercam")
# Name of the image, and the class that is explained; -1 is the most probable one.
ROWS = (
    ("cat", -1),
    ("coffee", -1),
    ("cat-and-coffee", "espresso"),
    ("cat-and-coffee", "Egyptian cat"),
)


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
    images = load_images()
    targets = [target for _, target in ROWS]
    found = {
        method: explainer.explain(
            [images[name] for name, _ in ROWS], targets, method=method, tft=True
        )
        for method in METHODS
    }

    table = Table("image", "class", "p", "method", "tau*", "p under the mask")
    for i, (name, target) in enumerate(ROWS):
        for method in METHODS:
            e = found[method][i]
            tau = f"{e.threshold:.1f}" if e.improved else "none helps"
            after = f"{e.masked_probability:.3f}" if e.improved else "-"
            table.add_row(name, e.label, f"{e.probability:.3f}", method, tau, after)
            asked = "" if target == -1 else f".{target.replace(' ', '-')}"
            e.save(folder / f"{name}{asked}.{method}.png", "figure")
        table.add_section()
    console.print(table)
    sheet = folder / "overview.png"
    overview(found).savefig(sheet, dpi=110, bbox_inches="tight")
    console.print(f"\nLook at {sheet} and the other images in {folder}/", soft_wrap=True)


def load_images() -> dict[str, Image.Image]:
    """Cut square images from those of scikit-image; one holds two of them, one above the other."""
    folder = Path(skimage.data.__file__).parent
    cat, coffee = (Image.open(folder / name) for name in ("chelsea.png", "coffee.png"))
    both = Image.new("RGB", (440, 440))
    both.paste(cat.crop((0, 20, 440, 240)), (0, 0))
    both.paste(coffee.crop((0, 60, 600, 360)).resize((440, 220)), (0, 220))
    return {
        "cat": cat.crop((60, 0, 320, 260)),
        "coffee": coffee.crop((110, 10, 480, 380)),
        "cat-and-coffee": both,
    }


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
