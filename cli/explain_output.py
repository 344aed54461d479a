"""Where whycam explain writes to, and what: options, and the plan of files made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..runtime.box_drawing import draw_detections
from ..runtime.drawing import require_matplotlib
from ..runtime.errors import OutputError, RequestError
from ..runtime.file_names import (
    Kind,
    class_name,
    comparison_name,
    detection_stem,
    detections_name,
    file_name,
    find_files,
)
from ..runtime.files import write_whole
from ..runtime.overlay import COLORMAPS, Colormap, Crop, Style, enlargement
from ..runtime.report.document import Report
from ..runtime.results import TABLE_FILES, TABLES, Add, Table, table_writers
from ..runtime.saving import (
    IMAGE_TYPES,
    KINDS,
    check_type,
    encode_comparison,
    encode_image,
)
from ..runtime.targets import class_rows, resolve_targets
from . import parse
from .options import complete

if TYPE_CHECKING:
    from ..runtime.cam import Method
    from ..runtime.detect import ImageDetections
    from ..runtime.detection_plan import DetectionPlan
    from ..runtime.explanation import Explanation
    from ..runtime.manifest import Manifest
    from ..runtime.request import RequestPlan
    from ..runtime.tft import Tft

_ENDINGS: dict[str, Table] = {".csv": "csv", ".jsonl": "jsonl"}
# Of all classes of an image together, and of all that a detector found in it.
COMPARISON: Literal["comparison"] = "comparison"
DETECTIONS: Literal["detections"] = "detections"
Joint = Literal["comparison", "detections"]
_EXAMPLES = 3  # files named in an error
ImageFormat = Literal["png", "jpg", "webp"]


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and how it is drawn."""

    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder to write to; or a file: an image or .npy for one explanation, .csv or "
            ".jsonl for any number.",
        ),
    ] = None
    save: Annotated[
        str | None,
        typer.Option(
            "--save",
            metavar="KIND,...",
            help=f"What is written, of: {', '.join((*KINDS, COMPARISON, DETECTIONS, *TABLES))} "
            "[default: overlay, of several classes their comparison, of a detector detections, all "
            "boxes of an image with their heat]. Maps (.npy) and masks (.png) lie over the image's "
            "own pixels; figures need matplotlib; csv, jsonl and coco are one file each.",
            autocompletion=complete((*KINDS, COMPARISON, DETECTIONS, *TABLES)),
        ),
    ] = None
    format: Annotated[ImageFormat, typer.Option(help="Type of overlays and figures.")] = "png"
    colormap: Annotated[
        Colormap,
        typer.Option(help="Colours of the map.", autocompletion=complete(COLORMAPS)),
    ] = "inferno"
    opacity: Annotated[float, typer.Option(help="Opacity of the colours, 0 to 1.")] = 0.6
    no_contour: Annotated[
        bool, typer.Option("--no-contour", help="Do not outline the region above the threshold.")
    ] = False
    crop: Annotated[
        Crop,
        typer.Option(
            help="How the part of the image that the network saw is shown: a thin frame, the rest "
            "dimmed, or not at all."
        ),
    ] = "frame"
    no_caption: Annotated[
        bool,
        typer.Option("--no-caption", help="No text above overlays: they have the image's size."),
    ] = False
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist already.")
    ] = False

    def style(self) -> Style:
        """Return how explanations are drawn."""
        return Style(
            self.opacity, self.colormap, not self.no_contour, self.crop, not self.no_caption
        )


@dataclass(frozen=True)
class OutputPlan:
    """The files of one run.

    Attributes:
        folder: of the files of each explanation.
        file: the file of the only explanation, in place of a folder.
        report: the page with all images.
        kinds: what is written of each explanation.
        joint: what is written of each image for all its classes or detections together.
        tables: files that hold all of them.
        options: how they are drawn, and whether older files are replaced.
        counts: how many files of a kind were written.
    """

    folder: Path | None
    file: Path | None
    report: Path | None
    kinds: tuple[Kind, ...]
    tables: dict[Table, Path]
    options: OutputOptions
    joint: Joint | None = None
    counts: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def report_of(self, images: int) -> Iterator[Report | None]:
        """Begin the report of so many images, if one is written."""
        if self.report is None:
            yield None
            return
        with Report(self.report, images) as report:
            yield report

    @contextmanager
    def tables_of(self, manifest: Manifest) -> Iterator[Add]:
        """Begin the tables; they are written when the block ends without an error."""
        with table_writers(self.tables, manifest, self.options.overwrite) as add:
            yield add

    def write(self, explanation: Explanation, stem: str) -> list[str]:
        """Write the files of one explanation, and return where they are.

        Args:
            explanation: what is written.
            stem: name of its image.

        Raises:
            OutputError: a file exists and may not be overwritten, or cannot be written.
        """
        written = []
        style, overwrite = self.options.style(), self.options.overwrite
        for kind in self.kinds:
            target = self.file or self.place_of(stem, explanation, kind)
            _check_absent(target, overwrite)
            written.append(str(explanation.save(target, kind, style, overwrite)))
            self.counts[kind] += 1
        return written

    def write_comparison(self, explanations: Sequence[Explanation], stem: str) -> list[str]:
        """Write the figure of several classes of an image, if asked for, and return where it is.

        Where all of them are one class of this image, its overlay is written.

        Args:
            explanations: of one method, one a class.
            stem: name of the image.

        Raises:
            OutputError: the file exists and may not be overwritten, or cannot be written.
        """
        if self.joint != COMPARISON:
            return []
        style, overwrite = self.options.style(), self.options.overwrite
        if len(explanations) == 1:  # all targets are one class of this image
            target = self.file or self.place_of(stem, explanations[0], "overlay")
            _check_absent(target, overwrite)
            self.counts["overlay"] += 1
            return [str(explanations[0].save(target, "overlay", style, overwrite))]
        name = comparison_name(stem, explanations, f".{self.options.format}")
        target = self.file or (self.folder or Path("maps")) / name
        _check_absent(target, overwrite)
        data = encode_comparison(explanations, target.suffix, style)
        self.counts[COMPARISON] += 1
        return [str(write_whole(target, data, overwrite))]

    def write_detections(
        self,
        found: ImageDetections,
        stem: str,
        method: Method,
        thresholding: Tft | Literal["naive"] | None,
    ) -> list[str]:
        """Write the image with all its detections, if asked for, and return where it is.

        Args:
            found: of the image; without a detection it is written as it is.
            stem: name of the image.
            method: whose maps are drawn.
            thresholding: of the maps.

        Raises:
            OutputError: the file exists and may not be overwritten, or cannot be written.
        """
        if self.joint != DETECTIONS:
            return []
        target = self.file or self._place_of_all(stem, method, thresholding)
        _check_absent(target, self.options.overwrite)
        scale = enlargement(*found.image.shape[:2])
        detections = found.by_method[method]
        drawn = draw_detections(found.image, detections, self.options.style(), scale)
        self.counts["boxed image"] += 1
        data = encode_image(drawn, target.suffix)
        return [str(write_whole(target, data, self.options.overwrite))]

    def _place_of_all(
        self, stem: str, method: Method, thresholding: Tft | Literal["naive"] | None
    ) -> Path:
        image_type = f".{self.options.format}"
        folder = self.folder or Path("maps")
        return folder / detections_name(stem, method, thresholding, image_type)

    def check_no_detections(
        self,
        stems: Sequence[str],
        plan: DetectionPlan,
        thresholding: Tft | Literal["naive"] | None,
    ) -> None:
        """Refuse a run of several images that would come upon older files of a detector.

        What is found is known only afterwards: files of any class count. Of one image that is
        left to ``write``.

        Args:
            stems: names of the images.
            plan: names the methods, and how many detections an image has at most.
            thresholding: of the maps.

        Raises:
            OutputError: there are such files.
        """
        if self.folder is None or self.options.overwrite or len(stems) < 2:
            return
        methods = [one.method for one in plan.request.methods]
        image_type = f".{self.options.format}"
        ranked = [detection_stem(s, 1 + rank) for s in stems for rank in range(plan.most)]
        found = find_files(
            self.folder, ranked, [None], methods, thresholding, self.kinds, image_type
        )
        if self.joint == DETECTIONS:
            places = [self._place_of_all(s, m, thresholding) for s in stems for m in methods]
            found = sorted([*found, *(place.name for place in places if place.exists())])
        self._refuse_found(found, "may be written again, which is known only after the run")

    def check_absent(
        self,
        stems: Sequence[str],
        classes: Sequence[int | str],
        plan: RequestPlan,
        thresholding: Tft | Literal["naive"] | None,
        manifest: Manifest,
    ) -> None:
        """Refuse a run of several images that would come upon older files.

        The class of a rank is known only after an image is classified: files of any class of the
        image count. Of one image that is left to ``write``.

        Args:
            stems: names of the images.
            classes: indices, ranks and labels of those that are explained.
            plan: names the methods.
            thresholding: of the maps.
            manifest: knows the classes.

        Raises:
            RequestError: a class does not exist.
            OutputError: there are such files.
        """
        (indices,) = class_rows(resolve_targets(list(classes), 1, False, manifest))
        if self.folder is None or self.options.overwrite or len(stems) < 2:
            return
        names = [None if i < 0 else class_name(i, manifest.label(i)) for i in indices]
        kinds = (*self.kinds, *([COMPARISON] if self.joint == COMPARISON else []))
        methods = [one.method for one in plan.methods]
        image_type = f".{self.options.format}"
        found = find_files(self.folder, stems, names, methods, thresholding, kinds, image_type)
        some = (
            "would be written again"
            if None not in names
            else "may be written again, which is known only after the images are classified"
        )
        self._refuse_found(found, some)

    def _refuse_found(self, found: Sequence[str], some: str) -> None:
        if not found:
            return
        examples = ", ".join(found[:_EXAMPLES]) + (", ..." if len(found) > _EXAMPLES else "")
        raise OutputError(
            f"{len(found):,} file{'s' * (len(found) != 1)} in {self.folder}/ {some} ({examples}), "
            "and nothing was begun: choose another folder with -o, or add --overwrite"
        )

    def place_of(self, stem: str, explanation: Explanation, kind: Kind) -> Path:
        """Name the file of one explanation in the folder."""
        folder = self.folder or Path("maps")
        return folder / file_name(stem, explanation, kind, f".{self.options.format}")

    def summary(self) -> str:
        """Say what was written, in one line."""
        if self.file is not None:
            return f"written to {self.file}"
        parts = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in self.counts.items()]
        if self.folder is None:
            return f"written to {', '.join(map(str, self.tables.values()))}"
        parts += [path.name for path in self.tables.values()]
        parts += [] if self.report is None else [self.report.name]
        return f"written to {self.folder}/: {', '.join(parts)}"


def plan_output(
    options: OutputOptions,
    images: int,
    classes: int,
    is_thresholded: bool,
    report: bool,
    detector: bool = False,
) -> OutputPlan | None:
    """Decide which files a run writes; None: none at all.

    Args:
        options: as given.
        images: how many there are, times the methods.
        classes: how many of each are explained; of a detector how many detections, at most.
        is_thresholded: whether they have masks.
        report: whether the page is written; overlays are then on request only.
        detector: whether objects are explained, not classes of whole images.

    Raises:
        RequestError: options that contradict each other or need ``-o``, or one file for several
            explanations.
        OutputError: a file exists that would be overwritten.
    """
    options.style()  # refuses what is out of range
    output, given = options.output, _given(options)
    kinds = tuple(kind for kind in given if kind in KINDS)
    tables = tuple(kind for kind in given if kind in TABLES)
    if (COMPARISON if detector else DETECTIONS) in given:
        what = (
            f"{COMPARISON} compares the classes of whole images, and a detector's file"
            if detector
            else f"{DETECTIONS} are a detector's, and a classifier's file"
        )
        raise RequestError(f"--save {what} has none: leave it out")
    if COMPARISON in given and classes < 2:
        raise RequestError(
            "--save comparison needs several classes: --target CLASS,CLASS or --top 2 and more"
        )
    together: Joint = DETECTIONS if detector else COMPARISON
    several = (detector or classes > 1) and not given and not report
    joint = together if together in given or several else None
    if output is None:
        if given or report:
            option = "--report" if report else "--save"
            raise RequestError(f"{option} needs a place to write to: -o FOLDER")
        return None
    if "figure" in given:
        require_matplotlib()
    suffix = output.suffix.lower()
    if output.is_dir() or suffix not in (*IMAGE_TYPES, ".npy", *_ENDINGS):
        named = {kind: output / TABLE_FILES[kind] for kind in tables}
        chosen = kinds if given or report or several else ("overlay",)
        page = output / "report.html" if report else None
        plan = OutputPlan(output, None, page, chosen, named, options, joint)
    elif report:
        raise RequestError(f"{output} is one file, and --report needs a folder: -o FOLDER")
    elif suffix in _ENDINGS:
        kind = _ENDINGS[suffix]
        if given not in ((), (kind,)):
            raise RequestError(f"{output} is one file of --save {kind}: name a folder for more")
        plan = OutputPlan(None, None, None, (), {kind: output}, options)
    else:
        joint = None if suffix == ".npy" else joint
        default: tuple[Kind, ...] = ("map",) if suffix == ".npy" else ("overlay",)
        chosen = () if joint and not kinds else kinds or default
        count = images * ((joint is not None) + len(chosen) * classes)
        if count > 1 or tables:
            raise RequestError(
                f"{output} is one file, and there is more to write: name a folder, as -o maps/"
            )
        check_type(output, chosen[0] if chosen else "overlay")
        plan = OutputPlan(None, output, None, chosen, {}, options, joint)
    if "mask" in plan.kinds and not is_thresholded:
        raise RequestError("there are no masks without thresholding: add --tft or --naive")
    for target in filter(None, (plan.file, plan.report, *plan.tables.values())):
        _check_absent(target, options.overwrite)
    return plan


def example_name(stem: str, explanations: Sequence[Explanation]) -> str:
    """Say what would be written of an image, and where in the folder ``maps``."""
    if len(explanations) > 1:
        return f"comparison goes to maps/{comparison_name(stem, explanations, '.png')}"
    return f"overlay goes to maps/{file_name(stem, explanations[0], 'overlay')}"


def _given(options: OutputOptions) -> tuple[str, ...]:
    if options.save is None:
        return ()
    return tuple(
        dict.fromkeys(
            parse.choices("--save", options.save, (*KINDS, COMPARISON, DETECTIONS, *TABLES))
        )
    )


def _check_absent(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists already: choose another place, or add --overwrite")
