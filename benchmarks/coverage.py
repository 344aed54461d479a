"""Which networks whycam explains: torchvision's and timm's, one after the other.

    python benchmarks/coverage.py images/ -o coverage/ --work /tmp/graphs
    python benchmarks/coverage.py images/ -o coverage/ --models timm/resnet10t
    python benchmarks/coverage.py images/ -o coverage/ --work /tmp/graphs --steps overhead

Of each network one file with raw outputs, finished maps and a TFT sweep is exported, which includes
the check against autograd in float64. Its maps are compared with those of pytorch-grad-cam on
images, a TensorRT-RTX plan is built from it, an INT8 file is made and compared with it, and an
explanation is timed beside plain classification. A refusal is kept word for word.

Weights are random: none can be downloaded everywhere. Statistics of batch normalisation are those
of the images, and logits are spread as training spreads them, so that maps are not flat.

Every network runs in a worker process, under a time limit; a worker that dies is the network's
result, and a new one is started. Rows are kept in coverage.json, and only what is missing there is
done. Steps may be done apart; times are worth something only while nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torchvision
from coverage_table import markdown, summary
from numpy.typing import NDArray
from timing import console, environment

import whycam
from whycam import Tft, WhyCamError
from whycam.calibrate.int8_file import write_int8
from whycam.calibrate.quantise import observe, quantise, read_graph
from whycam.calibrate.ranges import magnitude
from whycam.export import ExportResult, to_onnx, to_plan
from whycam.export.from_torch import to_ir
from whycam.export.layers import Network
from whycam.export.output_meaning import interpret_outputs
from whycam.export.plain_model import to_plain
from whycam.export.resolve import resolve
from whycam.export.source import Source
from whycam.export.verify_subject import draw_random_fields
from whycam.runtime import cam
from whycam.runtime.engines import selftest
from whycam.runtime.engines.opening import open_engine
from whycam.runtime.engines.plan import Range
from whycam.runtime.errors import VerificationError
from whycam.runtime.files import write_whole
from whycam.runtime.images import read_image
from whycam.runtime.manifest import Manifest, Preprocess
from whycam.runtime.onnxcut import without_outputs
from whycam.runtime.onnxfile import append_manifest, digest, read_manifest
from whycam.runtime.preprocess import crop_resized, normalise
from whycam.runtime.similarity import pearson
from whycam.runtime.threads import one_blas_thread
from whycam.runtime.timing import measure_seconds, run_interleaved
from whycam.train.network import TunableNetwork

STEPS = ("export", "baseline", "rtx", "int8", "overhead")
# One small network of each of timm's modules that holds convolutional networks.
# fmt: off
FAMILIES = (
    "test_byobnet", "convmixer_768_32", "convnext_atto", "cs3darknet_focus_s", "cspnext_tiny",
    "densenet121", "dla46_c", "dpn48b", "tinynet_e", "fasternet_t0", "fastvit_t8",
    "focalnet_tiny_srf", "ghostnet_050", "hardcorenas_a", "hgnetv2_b0", "hrnet_w18_small",
    "inception_next_atto", "inception_resnet_v2", "inception_v3", "inception_v4",
    "lcnetv2_small", "mambaout_femto", "convformer_s18", "lcnet_035", "nasnetalarge",
    "nfnet_l0", "pnasnet5large", "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvit_m0_9",
    "res2net50_48w_2s", "resnest14d", "resnet10t", "resnetv2_18", "rexnet_100", "selecsls42",
    "legacy_seresnet18", "skresnet18", "starnet_s050", "tresnet_m", "vgg11",
    "ese_vovnet19b_slim_dw", "legacy_xception", "xception41",
)
# fmt: on
# Convolutions and attention together: tried, and not counted among convolutional families.
# fmt: off
HYBRIDS = (
    "botnet26t_256", "cpubone_b0_bfrobust", "csatv2", "edgenext_xx_small", "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientvim_m1", "efficientvit_b0", "efficientvit_m0", "iformer_m", "levit_128s",
    "lowformer_b0", "mobilenetv5_base", "test_coatnet", "test_maxvit",
    "mobilevit_xxs", "mobilevitv2_050", "nextvit_small", "poolformer_s12", "shvit_s1",
    "swiftformer_xs", "tiny_vit_5m_224", "visformer_tiny", "vitamin_small_224",
)
# fmt: on
# Networks of attention or of mixing over tokens, without or with few convolutions.
# fmt: off
TRANSFORMERS = (
    "test_vit", "test_vit2", "test_vit3", "test_vit4", "test_vit_relpos", "mixer_s32_224",
    "gmlp_ti16_224", "resmlp_12_224", "xcit_nano_12_p16_224", "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_336", "beit_base_patch16_224",
    "cait_xxs24_224", "convit_tiny", "crossvit_tiny_240", "coat_lite_tiny", "pit_ti_224",
    "pvt_v2_b0", "twins_svt_small", "nest_tiny_jx", "tnt_s_patch16_224", "volo_d1_224",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224",
    "mvitv2_tiny", "hiera_tiny_224", "davit_tiny", "gcvit_xxtiny", "sequencer2d_s",
    "hieradet_small", "naflexvit_base_patch16_gap", "samvit_base_patch16_224",
    "vit_base_r26_s32_224",
)
# fmt: on
# What must be refused, and say why.
DETECTORS = ("detection.ssdlite320_mobilenet_v3_large", "segmentation.lraspp_mobilenet_v3_large")
# As the graph's sweep with ten thresholds, in a third of the time.
THRESHOLDS = Tft(taus=(0.2, 0.5, 0.8))
COMPUTE = ("8.6", "8.9", "12.0")
GROUPS: dict[str, Callable[[str], bool]] = {
    "torchvision": lambda n: n.startswith("torchvision/") and group_of(n) == "convolutional",
    "timm, one of each convolutional family": lambda n: n.removeprefix("timm/") in FAMILIES,
    "Convolutions with attention": lambda n: group_of(n) == "hybrid",
    "Transformers and mixers": lambda n: group_of(n) == "transformer",
    "Detectors and segmenters": lambda n: group_of(n) == "detector",
}
_TORCHVISION_TRANSFORMERS = ("torchvision/vit_", "torchvision/swin_")
_SPREAD = 3.0  # standard deviation of a trained classifier's logits
_CANCELLED = 1e-3  # range of a map's values, as a share of the terms of its sums
_FAR = 1e-4  # maps of two programs that differ by more are held against float64
_SHOWN = 8  # images for ranges, and as many others to compare on
_ROUNDS = (15, 150)  # of timing, fewer for larger networks:
_SECONDS = 3  # for one side of it


def known() -> list[str]:
    """Every network that is tried, small ones first."""
    models = torchvision.models.list_models(module=torchvision.models)

    def work(name: str) -> float:
        return float(torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"])

    return [
        *(f"timm/{name}" for name in FAMILIES),
        *(f"torchvision/{name}" for name in sorted(models, key=work)),
        *(f"timm/{name}" for name in HYBRIDS + TRANSFORMERS),
        *(f"torchvision/{name}" for name in DETECTORS),
    ]


def group_of(spec: str) -> str:
    """Return what a network is: convolutional, hybrid, transformer or detector."""
    name = spec.partition("/")[2]
    if name in DETECTORS:
        return "detector"
    if name in TRANSFORMERS or spec.startswith(_TORCHVISION_TRANSFORMERS):
        return "transformer"
    return "hybrid" if name in (*HYBRIDS, "maxvit_t") else "convolutional"


def loaded(spec: str) -> Source:
    if spec.removeprefix("torchvision/") in DETECTORS:
        kind, _, name = spec.removeprefix("torchvision/").partition(".")
        builder = getattr(getattr(torchvision.models, kind), name)
        return resolve(builder(weights=None, weights_backbone=None), needs_preprocess=False)
    source = resolve(spec, "none")
    # Weights may come with another size than the network is made for without them.
    side = getattr(source.model, "image_size", None)
    if not isinstance(side, int):
        return source
    return replace(source, preprocess=msgspec.structs.replace(source.preprocess, size=(side, side)))


def lively(model: torch.nn.Module, images: torch.Tensor) -> torch.nn.Module:
    """Random weights that answer like trained ones: statistics of their own, logits apart."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    model.eval()
    for each in norms:
        each.reset_running_stats()
        each.momentum = None  # the mean of all batches
        each.train()
    with torch.no_grad():
        if norms:
            model(images)
        last = [m for m in model.modules() if isinstance(getattr(m, "weight", None), torch.Tensor)]
        if not last[-1].weight.any():  # as some transformers start it: no gradient passes
            torch.nn.init.normal_(last[-1].weight)
        spread = float(model.eval()(images[:2]).std(dim=1).mean())
        for values in last[-1].parameters(recurse=False):
            values *= _SPREAD / max(spread, 1e-6)
    return model


def prepared(paths: list[Path], spec: Preprocess) -> NDArray[np.float32]:
    """Images as the network takes them, [N, 3, H, W]."""
    return normalise(np.stack([crop_resized(read_image(p), spec)[0] for p in paths]), spec)


def with_tests(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images [N, 3, H, W], and what else a file is tried on: test patterns, random fields."""
    size = (images.shape[2], images.shape[3])
    patterns = [selftest.wave_pattern(index, size) for index in range(selftest.PATTERNS)]
    fields = draw_random_fields(np.random.default_rng(7), 4, size)
    return np.concatenate([images, np.stack(patterns), fields])


class _Backbone(torch.nn.Module):
    """A network up to its target layer."""

    def __init__(self, parts: TunableNetwork) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        (activations,), _ = self.parts(self.parts.below(image))
        return activations


class Attempt:
    """One network; each step fills in its part of the row."""

    def __init__(
        self, spec: str, images: list[Path], folder: Path, threads: int, patterns: bool
    ) -> None:
        torch.set_num_threads(threads)
        self.spec = spec
        self.images = images
        self.threads = threads
        self.path = folder / f"{spec.replace('/', '.')}.onnx"
        self.folder = folder
        self.patterns = patterns
        self._model: torch.nn.Module | None = None

    def model(self) -> torch.nn.Module:
        """The network, made lively once."""
        if self._model is None:
            source = loaded(self.spec)
            images = prepared(self.images[:4], source.preprocess)
            torch.manual_seed(0)
            shown = with_tests(images) if self.patterns else images
            self._model = lively(source.model, torch.from_numpy(shown))
            frozen = self._model.eval().requires_grad_(False)
            self._source = replace(source, model=frozen)
        return self._model

    def export(self) -> dict[str, Any]:
        """The file, and how far it is from PyTorch in float64."""
        torch.manual_seed(0)
        try:
            self.model()
        except WhyCamError:
            raise
        except Exception:  # a network that trains otherwise: export says what is wrong with it
            self._source = loaded(self.spec)
        try:
            made = self._exported()
        except VerificationError:
            if self.patterns:
                raise
            # With statistics of smooth images alone some networks swell on other images to
            # logits of thousands, of which float32 keeps no digit that shows.
            self.patterns, self._model = True, None
            self.model()
            made = self._exported()
        errors = made.verification.worst
        manifest = made.manifest
        # The file without what was added is the network's own graph.
        plain = len(without_outputs(self.path, set(manifest.output_shapes)))
        return {
            "patterns": self.patterns,
            "layer": manifest.target_layer,
            "shape": manifest.activations,
            "size": manifest.preprocess.size,
            "methods": manifest.methods,
            "errors": errors,
            "parameters": sum(p.numel() for p in self._source.model.parameters()),
            "megabytes": round(made.size / 1e6, 1),
            "export_seconds": round(made.seconds, 1),
            "nodes_added": made.nodes,
            "bytes_added": made.size - plain,
            "rules": made.rules,
        }

    def _exported(self) -> ExportResult:
        return to_onnx(self._source, self.path, outputs=["raw", "map", "tft"], tft=THRESHOLDS)

    def raw(self) -> Path:
        """The same file with raw outputs alone, as ``--outputs raw`` writes it."""
        path = self.path.with_suffix(".raw.onnx")
        if not path.exists() and not self.path.exists():
            self.model()
            to_onnx(self._source, path, outputs=["raw"])
        if not path.exists():
            manifest = read_manifest(self.path)
            raw = msgspec.structs.replace(manifest, outputs=("raw",), map_methods=())
            surplus = set(manifest.output_shapes) - set(raw.output_shapes)
            path.write_bytes(without_outputs(self.path, surplus))
            append_manifest(path, msgspec.structs.replace(raw, digest=digest(path)))
        return path

    def baseline(self) -> dict[str, Any]:
        """Grad-CAM of images by pytorch-grad-cam, at our layer of the same network."""
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        manifest = read_manifest(self.path)
        model = self.model().requires_grad_(True)
        layer = dict(model.named_modules()).get(manifest.target_layer)
        where = "module"
        if layer is None:
            spec = manifest.preprocess
            parts = TunableNetwork(model, spec.size, channels=spec.channels)
            model = torch.nn.Sequential(_Backbone(parts), parts.head).requires_grad_(True)
            layer, where = model[0], "recorded backbone"
        engine = open_engine(self.path, manifest, "onnxruntime")
        arrange = channels_first(model, layer, manifest)

        def theirs(image: torch.Tensor, target: int) -> NDArray[Any]:
            model.to(image.dtype)
            with GradCAM(
                model=model, target_layers=[layer], reshape_transform=arrange
            ) as extractor:
                found: NDArray[Any] = extractor(image, [ClassifierOutputTarget(target)])[0]
            model.float()
            return found

        furthest, alike, rounded = 0.0, [], {"ours": 0.0, "theirs": 0.0}
        for path in self.images[:3]:
            image = prepared([path], manifest.preprocess)
            found = explained(engine, image)
            if not shows(found):
                continue
            target = int(found["targets"][0, 0])
            expected = theirs(torch.from_numpy(image), target)
            far = float(np.abs(found["map"] - expected).max())
            furthest = max(furthest, far)
            alike.append(pearson(found["map"], expected))
            if far > _FAR:  # which of the two float32 programs is off?
                exact = theirs(torch.from_numpy(image).double(), target)
                for side, map_ in (("ours", found["map"]), ("theirs", expected)):
                    rounded[side] = max(rounded[side], float(np.abs(map_ - exact).max()))
        if not alike:
            return {"error": "its maps are what float32 rounds of sums that cancel: no two agree"}
        seen = {"furthest": furthest, "pearson": min(alike), "at": where}
        return {**seen, "rounded": rounded} if furthest > _FAR else seen

    def rtx(self) -> dict[str, Any]:
        """One plan for three generations of GPUs."""
        plan = self.folder / "coverage.plan"
        try:
            made = to_plan(self.path, plan, compute=COMPUTE, batch=Range(1, 1, 2))
            return {"megabytes": round(made.size / 1e6, 1)}
        finally:
            for path in (plan, plan.with_name(f"{plan.name}.json")):
                path.unlink(missing_ok=True)

    def int8(self) -> dict[str, Any]:
        """Plain calibration by largest magnitudes: what a network gives without a search."""
        path = self.path.with_suffix(".int8.onnx")
        graph = read_graph(self.raw())
        manifest = read_manifest(self.raw())
        shown = [prepared([p], manifest.preprocess) for p in self.images[:_SHOWN]]
        seen = observe(graph, iter(shown), self.threads)
        ranges = {name: magnitude(counted, "minmax", 100.0) for name, counted in seen.items()}
        try:
            write_int8(quantise(graph, ranges, weight_bits=7), manifest, path)
            reference, other = (
                open_engine(each, read_manifest(each), "onnxruntime") for each in (self.raw(), path)
            )
            same, alike = [], []
            for path in self.images[_SHOWN : 2 * _SHOWN]:
                image = prepared([path], manifest.preprocess)
                expected = explained(reference, image)
                best = int(expected["targets"][0, 0])
                found = explained(other, image, best)
                same.append(int(found["probabilities"].argmax()) == best)
                alike.append(pearson(expected["map"], found["map"]))
            return {
                "layers": len(graph.layers),
                "top1": float(np.mean(same)),
                "pearson": statistics.median(alike),
                "megabytes": round(path.stat().st_size / 1e6, 1),
            }
        finally:
            path.unlink(missing_ok=True)

    def overhead(self) -> dict[str, Any]:
        """A finished Grad-CAM map beside plain classification, both by ONNX Runtime, one image."""
        if not self.path.exists():
            self.model()
            self._exported()
        manifest = read_manifest(self.path)
        engine = whycam.load(self.path, "onnxruntime", threads=self.threads).engine
        image = prepared(self.images[:1], manifest.preprocess)
        feeds = {"image": image, "target": np.full((1, 1), -1, np.int64)}
        contenders: dict[str, Callable[[], Any]] = {
            "plain": lambda: engine.run(feeds, ["probabilities"]),
            "explain": lambda: engine.run(feeds, ["probabilities", "targets", "original_maps"]),
        }
        timed = {name: partial(measure_seconds, run) for name, run in contenders.items()}
        once = min(timed["explain"]() for _ in range(3))
        rounds = int(np.clip(_SECONDS / once, *_ROUNDS))
        medians = {n: statistics.median(s) for n, s in run_interleaved(timed, rounds).items()}
        return {
            "plain_ms": round(medians["plain"] * 1e3, 3),
            "ratio": round(medians["explain"] / medians["plain"], 3),
            "rounds": rounds,
        }


def channels_first(
    model: torch.nn.Module, layer: torch.nn.Module, manifest: Manifest
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Find what brings a module's output into the order [N, K, h, w]; None if it is so.

    Tokens are those of the graph's activations, which decide where in the sequence places are.
    """
    shapes: list[tuple[int, ...]] = []
    handle = layer.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        model(torch.zeros(1, manifest.preprocess.channels, *manifest.preprocess.size))
    handle.remove()
    channels, height, width = manifest.activations
    if shapes[0] == (channels, height, width):
        return None
    if shapes[0] == (height, width, channels):
        return lambda out: out.permute(0, 3, 1, 2)
    plain = to_plain(to_ir(model, manifest.preprocess.size, 18, manifest.preprocess.channels))
    meaning = interpret_outputs(plain.graph.outputs, plain.shapes)[0]
    arrangement = Network(plain, meaning.logits).find(manifest.target_layer).arrangement
    if shapes[0] == arrangement.array_shape(1)[1:]:
        positions = torch.from_numpy(arrangement.positions(1))  # images come one by one
        return lambda out: out.reshape(-1)[positions.reshape(-1)].reshape(positions.shape)
    raise WhyCamError(f"its module gives out {shapes[0]}, not {manifest.activations}")


def explained(engine: Any, image: NDArray[np.float32], target: int = -1) -> dict[str, Any]:
    """Grad-CAM from raw outputs, as the runtime makes it, in ``map`` [H, W]."""
    feeds = {"image": image, "target": np.full((1, 1), target, np.int64)}
    found = engine.run(feeds, ["probabilities", "targets", "activations", "gradients"])
    with one_blas_thread():  # as explain does: several would wait for ONNX Runtime's
        raw = cam.raw_map("gradcam", found["activations"], found["gradients"])
        return {**found, "map": cam.finish(raw, image.shape[2:])[0, 0]}


def shows(found: dict[str, Any]) -> bool:
    """Whether an explanation's map is more than what its sums round."""
    raw = cam.raw_map("gradcam", found["activations"], found["gradients"])
    terms = selftest.absolute_map("gradcam", found["activations"], found["gradients"])
    return bool(np.ptp(raw) > _CANCELLED * terms.max())


def attempt(
    spec: str,
    steps: list[str],
    row: dict[str, Any],
    images: list[Path],
    folder: Path,
    threads: int,
) -> dict[str, Any]:
    """Do the steps that the row lacks. Runs in the worker."""
    patterns = row.get("export", {}).get("patterns", False)
    trial = Attempt(spec, images, folder, threads, patterns)
    for step in steps:
        begin = time.perf_counter()
        try:
            if step in ("baseline", "rtx") and not trial.path.exists():
                trial.export()
            row[step] = getattr(trial, step)()
        except WhyCamError as error:
            row[step] = {"error": str(error).replace(f"{folder}/", "")}
        except MemoryError:
            row[step] = {"error": "out of memory"}
        except Exception as error:  # a defect: kept as such, and the run goes on
            row[step] = {"error": f"{type(error).__name__}: {error}", "defect": True}
        row[step]["seconds"] = round(time.perf_counter() - begin, 1)
        if step == "export" and "error" in row[step]:
            break
    return row


class Worker:
    """A process that does one network after the other; replaced when it dies or hangs."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def run(self, limit: float, *arguments: Any) -> dict[str, Any]:
        """What ``attempt`` returns; after ``limit`` seconds, or a death, what became of it."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, max_tasks_per_child=12)
        try:
            return self._pool.submit(attempt, *arguments).result(limit)
        except TimeoutError:
            return self._lost(f"not done within {limit:.0f} s")
        except BrokenProcessPool:
            return self._lost("the process died, for want of memory or by a crash of a library")

    def _lost(self, why: str) -> dict[str, Any]:
        assert self._pool is not None
        for process in list((self._pool._processes or {}).values()):
            process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        return {"lost": why}

    def close(self) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of 16 images or more")
    parser.add_argument("-o", type=Path, required=True, help="folder for coverage.json, models.md")
    parser.add_argument("--page", type=Path, help="a document whose tables to write anew as well")
    parser.add_argument("--models", help="torchvision/NAME,timm/NAME; default: all")
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--work", type=Path, help="folder for ONNX files, kept")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=900, help="seconds for one network")
    parser.add_argument("--minutes", type=float, help="begin no network after so many")
    options = parser.parse_args()
    images = sorted(p for p in options.images.iterdir() if p.suffix.lower() in _IMAGE_ENDINGS)
    images = images[:: max(1, len(images) // (2 * _SHOWN))][: 2 * _SHOWN]
    if len(images) < 2 * _SHOWN:
        parser.error(f"{options.images} has fewer than {2 * _SHOWN} images")
    wanted = options.steps.split(",")
    if set(wanted) - set(STEPS):
        parser.error(f"steps are {', '.join(STEPS)}")
    kept = options.o / "coverage.json"
    rows: dict[str, Any] = json.loads(kept.read_text())["rows"] if kept.exists() else {}
    begun = time.monotonic()
    worker = Worker()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for spec in options.models.split(",") if options.models else known():
            # What was lost is tried again: the machine may have been busy.
            row = {step: found for step, found in rows.get(spec, {}).items() if step != "lost"}
            missing = [step for step in wanted if step not in row]
            if not missing or "error" in row.get("export", {}):
                continue
            if options.minutes is not None and time.monotonic() - begun > options.minutes * 60:
                break
            arguments = (spec, missing, row, images, folder, options.threads)
            rows[spec] = {**row, **worker.run(options.limit, *arguments)}
            console.print(spec, shown(rows[spec]), soft_wrap=True, highlight=False)
            about = {**environment(options.threads), "timm": metadata.version("timm")}
            document = json.dumps({**about, "rows": rows}, indent=1)
            write_whole(kept, document.encode())
            write_whole(options.o / "models.md", markdown(rows, GROUPS).encode())
            if options.work is None:
                for path in folder.glob(f"{spec.replace('/', '.')}.*"):
                    path.unlink()
    worker.close()
    if options.page is not None:
        above = options.page.read_text("utf-8").partition(_BELOW)[0]
        write_whole(options.page, f"{above}{_BELOW}\n\n{markdown(rows, GROUPS)}".encode())
    console.print(summary(rows))
    raise SystemExit(any(defects(row) for row in rows.values()))


def shown(row: dict[str, Any]) -> str:
    return "; ".join(
        f"{step} {found.get('error', 'done')} {found.get('seconds', '')} s"
        if isinstance(found, dict)
        else f"{step}: {found}"
        for step, found in row.items()
    )


def defects(row: dict[str, Any]) -> bool:
    return "lost" in row or any(isinstance(v, dict) and v.get("defect") for v in row.values())


_BELOW = "<!-- benchmarks/coverage.py writes what follows -->"
_IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}

if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
