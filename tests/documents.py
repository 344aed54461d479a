"""The documents as their tests see them: commands and Python in order, and what these work on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "docs/**/*.md", "examples/*/README.md")
    for page in ROOT.glob(pattern)
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: relative to the repository.
        line: of its first line.
        language: as marked, or nothing.
        text: what it holds.
    """

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Step:
    """One line of a ``sh`` block, or a ``python`` block: what a reader does next on a page.

    Attributes:
        page, line: where it begins.
        text: a command without its comment, continued lines joined; or a whole Python block.
        python: whether it is one.
    """

    page: str
    line: int
    text: str
    python: bool = False

    def __str__(self) -> str:
        first = self.text.strip().splitlines()[0]
        return f"{self.page}:{self.line} {first[:60]}"

    @property
    def words(self) -> list[str]:
        """Of a command, without settings of the environment before it."""
        words = shlex.split(self.text)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        return words

    @property
    def is_whycam(self) -> bool:
        return not self.python and Path(self.words[0]).name == "whycam"


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    found: list[Block] = []
    lines = (ROOT / page).read_text("utf-8").splitlines()
    opened: tuple[str, str, str, int] | None = None  # indent, fence, language, line
    inside: list[str] = []
    for number, line in enumerate(lines, 1):
        fence = re.match(r"^( *)(`{3,}|~{3,})\s*(\S*)", line)
        if opened is None and fence:
            opened, inside = (fence[1], fence[2], fence[3], number + 1), []
        elif opened is not None and line.strip() == opened[1]:
            found.append(Block(page, opened[3], opened[2], "\n".join(inside)))
            opened = None
        elif opened is not None:
            inside.append(line.removeprefix(opened[0]))
    assert opened is None, f"{page}:{opened and opened[3]}: this block has no end"
    return found


def prose(page: str) -> str:
    """A page without its fenced blocks; line numbers stay."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    for block in blocks(page):
        for number in range(block.line - 2, block.line + len(block.text.splitlines())):
            lines[number] = ""
    return "\n".join(lines)


def inline_commands(page: str) -> Iterator[tuple[int, str]]:
    """Line and text of the commands that a page's sentences name: `whycam ...`, `python ...`."""
    text = prose(page)
    for found in re.finditer(r"(?<!`)`((?:whycam|python) [^`]+)`(?!`)", text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[1].split())


@cache
def steps(page: str) -> tuple[Step, ...]:
    """What a reader of a page does, in order."""
    found: list[Step] = []
    for block in blocks(page):
        if block.language == "python":
            found.append(Step(page, block.line, block.text, python=True))
        elif block.language == "sh":
            found += [Step(page, line, text) for line, text in _commands(block)]
    return tuple(found)


def _commands(block: Block) -> Iterator[tuple[int, str]]:
    pending, began = "", block.line
    for number, line in enumerate(block.text.splitlines(), block.line):
        if not pending:
            began = number
        if line.rstrip().endswith("\\"):
            pending += line.rstrip()[:-1] + " "
            continue
        text = _without_comment(pending + line)
        pending = ""
        if text:
            yield began, text


def _without_comment(text: str) -> str:
    """As a shell: from the first # that begins a word, outside quotes."""
    quote = ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (place == 0 or text[place - 1].isspace()):
            return text[:place].strip()
    return text.strip()


# The networks of the documents, in small. The one that stands in for pretrained networks says of
# itself how it wants its images, as timm's do; the reader's own does not.
_NETWORKS = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, classes, likely):
        super().__init__()
        self.layer3 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.layer4 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(16, classes)
        torch.manual_seed(3)
        with torch.no_grad():
            self.classifier.weight.zero_()
            self.classifier.bias.fill_(-4)
            self.classifier.weight[likely] = 3 * torch.randn(len(likely), 16)
            self.classifier.bias[likely] = 0.0

    def forward(self, x):
        return self.classifier(self.pool(self.layer4(self.layer3(x))))


def make_model():
    return Small(3, [0, 1, 2]).eval()


def imagenet():
    model = Small(1000, [281, 967, 657]).eval()
    model.pretrained_cfg = dict(
        input_size=(3, 64, 64), crop_pct=0.875, interpolation="bilinear",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )
    return model
"""

_FACES = """
import torch
from torch import nn


class Faces(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
        )
        self.age, self.gender = nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, x):
        pooled = self.features(x).mean((2, 3))
        return {"age": self.age(pooled), "gender": self.gender(pooled)}


def build():
    torch.manual_seed(0)
    return Faces().eval()
"""
_FACE_CLASSES = {"age": ["child", "youth", "adult", "old"], "gender": ["female", "male"]}

STAND_IN = "standin"  # a folder, as whycam train writes it: a network that has class names
CLASSES = ("tabby", "espresso", "missile")  # those that it finds likely
_IMAGES = 14  # of each class; whycam calibrate thresholds wants 40


# What other pages, or make demo, have left behind; as they write it, so that it is not done twice.
_BEFORE = (
    "whycam export torchvision/resnet50 -o resnet50.onnx",
    "whycam export timm/tf_efficientnet_lite0 -o lite0.onnx",
    "whycam export torchvision/resnet50 --method gradcam,gradcam++,layercam,ablation "
    "-o .demo/lite0.onnx",
    "whycam export my_model.py:make_model --weights best.safetensors --labels names.txt "
    "--preprocess imagenet -o mine.onnx",
    "whycam train classifier torchvision/resnet50 images/ -o mine/",
)


def materials(folder: Path) -> Path:
    """A folder with what the documents call cat.jpg, images/, resnet50.onnx and so on."""
    import cv2
    from PIL import Image
    from safetensors.torch import save_file
    from skimage import data
    from torch.nn import Sequential, Softmax
    from torchvision.models import ResNet50_Weights

    from whycam.export.resolve import resolve
    from whycam.export.saved_model import SavedModel, save_model

    folder.mkdir(parents=True)
    (folder / "my_model.py").write_text(_NETWORKS)
    (folder / "faces.py").write_text(_FACES)
    (folder / "classes.json").write_text(json.dumps(_FACE_CLASSES))
    (folder / "names.txt").write_text("\n".join(CLASSES) + "\n")
    scenes = [Image.fromarray(getattr(data, n)()) for n in ("chelsea", "coffee", "rocket")]
    for name in ("cat.jpg", "cat.png", "a.jpg", "b.jpg"):
        scenes[0].resize((113, 75)).save(folder / name)
    for name in ("camera.png", "galaxies.jpg", "cat-and-coffee.png"):  # of the gallery
        shutil.copy(folder / f"cat{Path(name).suffix}", folder / name)
    rng = np.random.default_rng(0)
    for scene, name in zip(scenes, CLASSES, strict=True):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(_IMAGES):
            left, top = (int(n) for n in rng.integers(0, 60, 2))
            part = scene.crop((left, top, left + 300, top + 220)).resize((96, 72))
            part.save(folder / "images" / name / f"{number}.jpg")
    _annotate(folder)
    _write_detector(folder)
    video = cv2.VideoWriter(
        str(folder / "walk.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 20, (128, 96)
    )
    for number in range(20):
        view = scenes[0].crop((4 * number, 20, 4 * number + 300, 245)).resize((128, 96))
        video.write(np.asarray(view)[..., ::-1])
    video.release()
    for name in ("examples", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    with _inside(folder):
        own = resolve("my_model.py:make_model", needs_preprocess=False).model
        save_file(own.state_dict(), "best.safetensors")
        deploy(Sequential(own, Softmax(-1)), Path("deployed.onnx"))
        network = resolve("my_model.py:imagenet")
        description = SavedModel(
            model="my_model.py:imagenet",
            num_classes=None,
            labels=tuple(ResNet50_Weights.DEFAULT.meta["categories"]),
            preprocess=network.preprocess,
        )
        save_model(Path(STAND_IN), description, network.model.state_dict())
        Path(".demo").mkdir()
        for text in _BEFORE:
            problem = whycam(Step("materials", 0, text))
            assert problem is None, problem
    return folder


def _write_detector(folder: Path) -> None:
    """Make street.jpg, a detector of coloured cells in it, others as they are deployed."""
    import msgspec
    from detector_networks import Yolo8, fill
    from PIL import Image
    from segmentation_networks import softmax_unet
    from tiny_detector import DETECTOR, write_tiny_detector

    deploy(fill(Yolo8()), folder / "detector.onnx")
    named = msgspec.structs.replace(DETECTOR, labels=("dog", "car", "bicycle"))
    write_tiny_detector(folder / "detector.explained.onnx", named)
    deploy(softmax_unet(), folder / "segmenter.onnx")
    (folder / "parts.txt").write_text("background\ncat\ndog\ncup\n")
    street = np.full((128, 128, 3), 20, np.uint8)
    street[32:48, 48:64, 0], street[96:112, 64:80, 1] = 190, 150
    Image.fromarray(street).save(folder / "street.jpg", quality=100, subsampling=0)


def _annotate(folder: Path) -> None:
    """Make voc/, the images with a box each, and tags/, masks of their left upper corners."""
    from PIL import Image

    for name in ("Annotations", "JPEGImages"):
        (folder / "voc" / name).mkdir(parents=True)
    for image in sorted((folder / "images").rglob("*.jpg")):
        label, name = image.parent.name, f"{image.parent.name}_{image.stem}"
        shutil.copy(image, folder / "voc" / "JPEGImages" / f"{name}.jpg")
        (folder / "voc" / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><object><name>{label}</name><bndbox><xmin>20</xmin><ymin>10</ymin>"
            "<xmax>80</xmax><ymax>60</ymax></bndbox></object></annotation>"
        )
        mask = np.zeros((72, 96), np.uint8)
        mask[:20, :20] = 255
        (folder / "tags" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / "tags" / label / f"{image.stem}.png")


def deploy(model: Any, path: Path) -> None:
    """Write a network as others do: a plain ONNX file for 64 x 64 images."""
    import torch

    torch.onnx.export(
        model.eval(),
        (torch.zeros(1, 3, 64, 64),),
        str(path),
        dynamo=False,
        input_names=["input"],
        output_names=["output"],
        opset_version=13,
    )


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        os.chdir(before)


def stood_in(words: list[str]) -> list[str]:
    """A command's words with a small network for each that is large or must be downloaded."""
    large = re.compile(r"(torchvision|timm)/\w+|(\S*/)?efficientnet_lite0\.py:\w+")
    return [STAND_IN if large.fullmatch(word) else word for word in words]


@dataclass
class Reader:
    """Follows one page from top to bottom, in a folder of its own."""

    page: str
    folder: Path
    done: dict[Step, str | None] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "document"})

    def follow(self, step: Step) -> str | None:
        """Take the steps up to this one, if they were not taken; what went wrong with this one.

        A step before it that went wrong is told by its own test.
        """
        for each in steps(self.page):
            if each not in self.done and why_not(each) is None:
                self.done[each] = self._take(each)
            if each == step:
                break
        return self.done[step]

    def _take(self, step: Step) -> str | None:
        with _inside(self.folder):
            if step.python:
                return self._python(step)
            return whycam(step) if step.is_whycam else _shell(step)

    def _python(self, step: Step) -> str | None:
        try:
            exec(compile(step.text, f"{step.page}:{step.line}", "exec"), self.names)
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        return None


def whycam(step: Step) -> str | None:
    """Run a whycam command in this process, which has torch loaded; what went wrong."""
    from whycam.cli import main

    words = stood_in(step.words)
    kept = _kept_of(words) if words[1] in _KEPT_VERBS else None
    if kept is not None and kept.exists():
        for number, place in enumerate(_outputs(words)):
            _copy(kept / str(number), Path(place))
        return None
    into = None
    if ">" in words:
        into, words = words[-1], words[: words.index(">")]
    with contextlib.ExitStack() as stack:
        if into is not None:
            file = stack.enter_context(open(into, "w"))
            stack.enter_context(contextlib.redirect_stdout(file))
        try:
            main(words[1:])
        except SystemExit as stop:
            if stop.code:
                return f"exit code {stop.code}"
    missing = [place for place in _outputs(words) if not Path(place).exists()]
    if missing:
        return f"not written: {', '.join(missing)}"
    if kept is not None:
        for number, place in enumerate(_outputs(words)):
            _copy(Path(place), kept / str(number))
    return None


_WRITTEN = ("-o", "--output", "--record", "--triton")
# Dear verbs: the same command on the same files is run on one page, and what it wrote is copied to
# the others.
_KEPT_VERBS = ("export", "train", "calibrate", "evaluate", "bench", "doctor", "build")


def _kept_of(words: list[str]) -> Path:
    """Where the outputs of a command are kept: beside the pages' folders, by all that goes in."""
    digest = hashlib.sha256()
    for option, word in zip(["", *words], words, strict=False):
        if option in _WRITTEN:
            continue
        digest.update(word.encode() + b"\0")
        place = Path(word)
        for file in [place, *sorted(place.rglob("*"))] if place.exists() else []:
            if file.is_file():
                digest.update(file.read_bytes())
    return Path.cwd().parent / "kept" / digest.hexdigest()


def _copy(place: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir():
        shutil.copytree(place, to, dirs_exist_ok=True)
    else:
        shutil.copy(place, to)


def _outputs(words: list[str]) -> list[str]:
    found = [value for option, value in pairwise(words) if option in _WRITTEN]
    if words[1:3] == ["calibrate", "thresholds"]:
        found.append(words[3])  # what was learnt is stored in the file
    return found


def _shell(step: Step) -> str | None:
    ran = subprocess.run(
        ["bash", "-euc", f'PATH="{Path(sys.executable).parent}:$PATH"; {step.text}'],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return None if ran.returncode == 0 else f"exit code {ran.returncode}: {ran.stderr[-2000:]}"


# Commands that no test can run, and why. The first that is found in a command counts.
NOT_RUN = {
    r"^(\S*/)?pip3? ": "installs packages; which extras it names is checked",
    r"^python3? -m venv ": "makes a virtual environment",
    r"^make ": "sets up a virtual environment; that there is such a target is checked",
    r"^source \.venv/bin/activate": "changes the reader's shell",
    r"^(sudo )?apt-get ": "installs packages of the system",
    r"^(cmake|build/explain) ": "tests/test_example_cpp.py builds and runs it",
    r"^(cd \S+ && )?(npm|node) ": "tests/test_example_node.py and test_example_browser.py run it",
    r"^(docker|tritonserver|trtexec|ssh|ffmpeg|git) ": "another program",
    r"^(curl|python examples/service/)": "tests/test_example_service.py starts it and asks",
    r"benchmarks/gpu\.sh (pack|run)": "downloads much; tests/test_gpu_script.py tries parts",
    r"^python benchmarks/": "takes minutes to hours; that its options exist is checked",
    r"^\S*whycam .*--source 0\b": "needs a camera",
    r"^\S*whycam .*--show\b": "needs a screen",
    r"^\S*whycam .*--engine (tensorrt|onnxruntime-cuda|onnxruntime-tensorrt)(?=\s|$)": (
        "needs an NVIDIA GPU"
    ),
    r"^export ORT_WEBGPU_|--engine onnxruntime-webgpu": "tests/test_ort_plugins.py runs it",
    r"^\S*whycam (?!build|info).*\.plan\b": "needs an NVIDIA GPU",
    r"^import whycam\n[^`]*load\(\"\w+\.plan\"": "needs an NVIDIA GPU",
    r"\btextures/": "explains networks that benchmarks/textures.py trains",
    r"open_clip/|\b(clip|pets)\.(onnx|npz)": "downloads weights; test_zero_shot.py has none",
    r"--on ray://": "needs a cluster",
    r"^from pyspark": "needs Java and pyspark",
    r"^import tritonclient|\nimport tritonclient": "needs a running Triton server",
}


def why_not(step: Step) -> str | None:
    """Why a step is not run; None if it is."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, step.text)), None)
