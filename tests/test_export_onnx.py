"""The exported file: its contract, where models come from, and what is refused."""

from __future__ import annotations

import copy
import os
import pickle
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from networks import CLASSES, SIZE, SMALL, curved, linear
from PIL import Image
from torch import nn

import whycam
from whycam.export import Overrides, assemble, to_onnx, verify
from whycam.export.plain_model import rename_einsum_indices
from whycam.export.resolve import resolve
from whycam.export.scores import Scores
from whycam.runtime.errors import (
    ExportError,
    OutputError,
    PreprocessError,
    RequestError,
    VerificationError,
)
from whycam.runtime.images import read_image
from whycam.runtime.preprocess import crop_resized, normalise

EXAMPLES = Path(__file__).parent.parent / "examples"
PIXELS = np.random.default_rng(3).standard_normal((5, 3, SIZE, SIZE)).astype(np.float32)
OUTPUTS = ["probabilities", "targets", "activations", "gradients", "ablation_weights"]


@pytest.fixture(scope="module")
def curved_file(exports) -> Path:
    return exports(curved, overrides=SMALL, methods=["gradcam", "ablation"])


@pytest.fixture(scope="module")
def run(curved_file: Path) -> Callable[[np.ndarray, Any], dict[str, np.ndarray]]:
    engine = whycam.load(curved_file, threads=1).engine
    return lambda image, target: engine.run(
        {"image": image, "target": np.asarray(target, np.int64)}, OUTPUTS
    )


# --- the contract of the graph ---


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("classes", [1, 3])
def test_batch_and_number_of_classes_are_dynamic_in_one_file(run, batch, classes) -> None:
    target = np.arange(batch * classes).reshape(batch, classes) % CLASSES
    found = run(PIXELS[:batch], target)
    shapes = {name: values.shape for name, values in found.items()}
    assert shapes == {
        "probabilities": (batch, CLASSES),
        "targets": (batch, classes),
        "activations": (batch, 8, 12, 12),
        "gradients": (batch, classes, 8, 12, 12),
        "ablation_weights": (batch, classes, 8),
    }
    for i in range(batch):
        for j in range(classes):
            alone = run(PIXELS[i : i + 1], [[target[i, j]]])
            for name in ("gradients", "ablation_weights"):
                np.testing.assert_allclose(
                    found[name][i, j], alone[name][0, 0], rtol=1e-4, atol=1e-6
                )
            np.testing.assert_allclose(
                found["probabilities"][i], alone["probabilities"][0], rtol=1e-5
            )


def test_ranks_are_the_classes_by_falling_probability(run) -> None:
    found = run(PIXELS, [[-1, -2, -3, -4, -5]] * 5)
    with torch.no_grad():
        expected = curved()(torch.from_numpy(PIXELS)).topk(5).indices.numpy()
    np.testing.assert_array_equal(found["targets"], expected)
    by_class = run(PIXELS, expected)
    np.testing.assert_array_equal(found["gradients"], by_class["gradients"])


def test_ranks_and_classes_mix_in_one_call(run) -> None:
    found = run(PIXELS[:2], [[-1, 4], [2, -3]])
    ranked = run(PIXELS[:2], [[-1, -2, -3]] * 2)["targets"]
    assert found["targets"].tolist() == [[ranked[0, 0], 4], [2, ranked[1, 2]]]


def test_gradients_follow_the_image_where_the_head_is_curved(run) -> None:
    gradients = run(PIXELS[:2], [[1], [1]])["gradients"]
    difference = np.abs(gradients[0] - gradients[1]).max()
    assert difference > 0.1 * np.abs(gradients).max()


def test_probabilities_equal_those_of_the_model(run) -> None:
    with torch.no_grad():
        expected = curved()(torch.from_numpy(PIXELS)).softmax(-1).numpy()
    np.testing.assert_allclose(run(PIXELS, [[0]] * 5)["probabilities"], expected, atol=1e-6)


@pytest.mark.parametrize("opset", [18, 20])
def test_opset_is_the_one_asked_for(tmp_path: Path, opset: int) -> None:
    done = to_onnx(curved(), tmp_path / "model.onnx", overrides=SMALL, opset=opset)
    written = onnx.load(done.path)
    assert {entry.version for entry in written.opset_import if entry.domain == ""} == {opset}
    assert done.manifest.opset == opset
    onnx.checker.check_model(written, full_check=True)


@pytest.mark.parametrize("opset", [7, 99])
def test_impossible_opset_is_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(ExportError):
        to_onnx(curved(), tmp_path / "model.onnx", overrides=SMALL, opset=opset)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "alexnet"])
@pytest.mark.parametrize("methods", [["gradcam"], ["gradcam", "ablation"]])
def test_weights_are_stored_once(tmp_path: Path, name: str, methods: list[str]) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    overrides = Overrides(preprocess="imagenet")
    done = to_onnx(model, tmp_path / "model.onnx", methods=methods, overrides=overrides)
    assert done.size == done.path.stat().st_size <= 1.02 * size + 2**20
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # no external data


@pytest.mark.parametrize(
    ("equation", "small"),
    [
        ("B G I D, B G J D -> B G I J", "a b c d, a b e d -> a b c e"),
        ("...Ij,...jK", "...ab,...bc"),
        ("ba,ac->bc", "ab,bc->ac"),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZa->A", "ABCDEFGHIJKLMNOPQRSTUVWXYZa->A"),
    ],
)
def test_indices_of_products_become_small_letters(equation: str, small: str) -> None:
    assert rename_einsum_indices(equation) == small


def test_file_holds_no_paths_of_this_machine(curved_file: Path) -> None:
    data = curved_file.read_bytes()
    for path in (Path(torch.__file__).parent, Path(__file__).parent.parent, curved_file.parent):
        assert str(path).encode() not in data


def test_same_model_gives_the_same_digest(curved_file: Path, tmp_path: Path) -> None:
    again = to_onnx(
        curved(), tmp_path / "model.onnx", overrides=SMALL, methods=["gradcam", "ablation"]
    )
    assert again.manifest.digest == whycam.load(curved_file).manifest.digest


def test_callers_model_stays_as_it_was(tmp_path: Path) -> None:
    model = linear().double().train()
    before = copy.deepcopy(model.state_dict())
    to_onnx(model, tmp_path / "model.onnx", overrides=SMALL)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.dtype == torch.float64 for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


# --- methods and scores ---


def test_default_methods_depend_on_the_head_and_leave_out_what_costs(tmp_path: Path) -> None:
    pooled = to_onnx(linear(), tmp_path / "a.onnx", overrides=SMALL).manifest
    other = to_onnx(curved(), tmp_path / "b.onnx", overrides=SMALL).manifest
    assert pooled.pooled_linear
    assert not other.pooled_linear
    assert set(pooled.methods) - set(other.methods) == {"cam"}
    assert "ablation" not in pooled.methods


def test_cam_is_refused_where_the_head_has_no_class_weights(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'cam' needs a head of global average pooling"):
        to_onnx(curved(), tmp_path / "model.onnx", overrides=SMALL, methods=["cam"])
    with pytest.raises(ExportError, match="and the logit as score"):
        to_onnx(linear(), tmp_path / "m.onnx", overrides=SMALL, methods=["cam"], score="prob")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("methods", [["grad-cam"], ["gradcam", "eigencam"], []])
def test_unknown_method_is_refused_with_the_known_ones(tmp_path: Path, methods) -> None:
    with pytest.raises(RequestError, match="choose from: cam, gradcam"):
        to_onnx(linear(), tmp_path / "model.onnx", overrides=SMALL, methods=methods)
    assert list(tmp_path.iterdir()) == []


# --- verification ---


def first_image(g):
    """The gradient of the batch's first image, for all."""
    starts, stops, axes = (g.recorder.constant(np.array([value], np.int64)) for value in (0, 1, 0))
    return g.recorder.op("Slice", [g, starts, stops, axes], (1, *g.shape[1:])) + 0.0 * g


GRADIENT_FAULTS = {
    "zero": lambda g: 0.0 * g,
    "transposed": lambda g: g.transpose([0, 1, 3, 2]),
    "negative": lambda g: -g,
    "a tenth of a percent off": lambda g: g * 1.001,
    "of the batch's first image": first_image,
    "baked in as a constant": lambda g: 0.0 * g + 1.0,
    "not a number": lambda g: g / 0.0,
}


@pytest.mark.parametrize("fault", GRADIENT_FAULTS)
def test_corrupted_gradient_is_found_out_and_leaves_no_file(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = assemble.reverse

    def corrupted(*arguments: Any) -> Any:
        found, rules = honest(*arguments)
        return [GRADIENT_FAULTS[fault](g) for g in found], rules

    monkeypatch.setattr(assemble, "reverse", corrupted)
    with pytest.raises(VerificationError, match="No file was written"):
        to_onnx(curved(), tmp_path / "model.onnx", overrides=SMALL)
    assert list(tmp_path.iterdir()) == []


SCORE_FAULTS = {
    "scores_of": lambda z: z.recorder.xp.concat([z[:, 1:], z[:, :1]], axis=1),  # of other classes
    "probabilities_of": lambda p: 0.99 * p,
    "_resolve_targets": lambda c: 0 * c,  # class 0 whatever was asked
}


@pytest.mark.parametrize("step", SCORE_FAULTS)
def test_corrupted_scores_are_found_out_and_leave_no_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = getattr(Scores, step)

    def corrupted(*arguments: Any, **options: Any) -> Any:
        return SCORE_FAULTS[step](honest(*arguments, **options))

    monkeypatch.setattr(Scores, step, corrupted)
    with pytest.raises(VerificationError, match="No file was written"):
        to_onnx(curved(), tmp_path / "model.onnx", overrides=SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "fault",
    [
        lambda d: 0.0 * d,
        lambda d: -d,
        lambda d: 1.01 * d,
        lambda d: d.recorder.xp.concat([d[:, 1:], d[:, :1]], axis=1),
    ],
)
def test_corrupted_ablation_is_found_out_and_leaves_no_file(
    fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = assemble.logit_drops
    monkeypatch.setattr(assemble, "logit_drops", lambda *arguments: fault(honest(*arguments)))
    with pytest.raises(VerificationError, match="ablation"):
        to_onnx(curved(), tmp_path / "model.onnx", overrides=SMALL, methods=["ablation"])
    assert list(tmp_path.iterdir()) == []


def test_verification_reports_small_differences_for_a_good_file(tmp_path: Path) -> None:
    found = to_onnx(
        curved(), tmp_path / "model.onnx", overrides=SMALL, methods=["ablation"]
    ).verification
    for name in ("probabilities", "activations", "gradients", "ablation"):
        assert 0 < found.worst[name] < 1e-5
    assert found.reference == "PyTorch in float64"
    assert found.inputs >= 2


class Magnifying(nn.Module):
    """Adds a part of what float32 rounds off a large sum, so that it decides the answer."""

    def __init__(self, above: float) -> None:
        super().__init__()
        self.net, self.above = linear(), above

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = 1e6 * (x[:, :1].mean((2, 3), keepdim=True) > self.above)
        return self.net(x + 10 * ((x + large) - large - x))


@pytest.mark.slow
def test_network_that_magnifies_rounding_is_not_called_a_wrong_graph(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"magnifies rounding.*No file was written"):
        to_onnx(Magnifying(-1e6).eval(), tmp_path / "model.onnx", overrides=SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_image_on_which_a_network_magnifies_rounding_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    draw = verify.draw_natural_images
    monkeypatch.setattr(verify, "draw_natural_images", lambda *a: drawn.append(a) or draw(*a))
    # Some of the drawn images' first channels are brighter than that, some darker.
    found = to_onnx(Magnifying(-0.1).eval(), tmp_path / "model.onnx", overrides=SMALL)
    assert len(drawn) > found.verification.inputs


class Moody(nn.Module):
    """Drops activations at random even in eval mode, as in Monte-Carlo dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.net(x), 0.5, training=True)


def test_model_that_answers_differently_from_call_to_call_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="differently from call to call"):
        to_onnx(Moody(), tmp_path / "model.onnx", overrides=SMALL)
    assert list(tmp_path.iterdir()) == []


# --- weight files ---

FACTORY = f"""
import torch
from torch import nn

def make(classes={CLASSES}):
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "whycam_test_factory.py").write_text(FACTORY)
    return f"{folder / 'whycam_test_factory.py'}:make"


def as_pth(state: dict, folder: Path) -> Path:
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


def as_safetensors(state: dict, folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


WEIGHT_FILES: dict[str, Callable[[dict, Path], Path]] = {
    ".pth": as_pth,
    ".safetensors": as_safetensors,
    "DataParallel": lambda s, f: as_pth({f"module.{n}": t for n, t in s.items()}, f),
    "torch.compile": lambda s, f: as_pth({f"_orig_mod.{n}": t for n, t in s.items()}, f),
    "both": lambda s, f: as_pth({f"module._orig_mod.{n}": t for n, t in s.items()}, f),
    "wrapped": lambda s, f: as_pth({"state_dict": s, "epoch": 3}, f),
    "wrapped otherwise": lambda s, f: as_pth({"model": s, "optimizer": {"lr": 0.1}}, f),
    "wrapped DataParallel": lambda s, f: as_pth(
        {"model_state_dict": {f"module.{n}": t for n, t in s.items()}}, f
    ),
    "half precision": lambda s, f: as_pth({n: t.half() for n, t in s.items()}, f),
}


@pytest.mark.parametrize("kind", WEIGHT_FILES)
def test_weights_come_from_a_file(kind: str, factory: str, tmp_path: Path) -> None:
    model = linear()
    file = WEIGHT_FILES[kind](model.state_dict(), tmp_path)
    loaded = resolve(factory, str(file), overrides=SMALL)
    assert loaded.weights == file.name
    tolerance = 1e-2 if kind == "half precision" else 0
    for name, tensor in loaded.model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert (tensor - model.state_dict()[name]).abs().max() <= tolerance


def test_exported_file_holds_the_weights_of_the_weight_file(factory: str, tmp_path: Path) -> None:
    model = linear()
    file = as_pth(model.state_dict(), tmp_path)
    done = to_onnx(factory, tmp_path / "model.onnx", weights=str(file), overrides=SMALL)
    found = whycam.load(done.path).engine.run(
        {"image": PIXELS, "target": np.zeros((5, 1), np.int64)}, ["probabilities"]
    )
    with torch.no_grad():
        expected = model(torch.from_numpy(PIXELS)).softmax(-1).numpy()
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    assert (done.manifest.weights, done.manifest.labels) == ("weights.pth", ())


class Payload:
    """Unpickled, it would make a folder at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickled_code_in_a_weight_file_is_never_run(
    writer: str, factory: str, tmp_path: Path
) -> None:
    trap, file = tmp_path / "ran", tmp_path / "weights.pth"
    if writer == "torch":
        torch.save({"state_dict": Payload(trap)}, file)
    else:
        file.write_bytes(pickle.dumps(Payload(trap), protocol=2))
    with pytest.raises(ExportError, match="only tensors are read"):
        resolve(factory, str(file), overrides=SMALL)
    assert not trap.exists()


def truncated(folder: Path, write: Callable[[dict, Path], Path], keep: float) -> Path:
    file = write(linear().state_dict(), folder)
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))])
    return file


def with_text(folder: Path, name: str) -> Path:
    (folder / name).write_text("<html>404</html>")
    return folder / name


def changed(folder: Path, **changes: Any) -> Path:
    state = {**linear().state_dict(), **{n.replace("_", "."): t for n, t in changes.items()}}
    return as_pth({name: tensor for name, tensor in state.items() if tensor is not None}, folder)


BAD_WEIGHTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a whole pickled model": (lambda f: as_pth(linear(), f), "only tensors are read"),
    "truncated .pth": (lambda f: truncated(f, as_pth, 0.6), "damaged"),
    "truncated .safetensors": (
        lambda f: truncated(f, as_safetensors, 0.6),
        "damaged",
    ),
    "empty": (lambda f: truncated(f, as_pth, 0), "damaged"),
    "text": (lambda f: with_text(f, "weights.pth"), "damaged"),
    "text as .safetensors": (
        lambda f: with_text(f, "weights.safetensors"),
        "damaged",
    ),
    "missing": (lambda f: f / "nowhere.pth", "there is no weight file"),
    "a folder": (lambda f: f, "there is no weight file"),
    "a list": (lambda f: as_pth([torch.zeros(3)], f), "holds a list"),
    "NaN": (
        lambda f: changed(f, **{"2_bias": torch.full((8,), float("nan"))}),
        "2.bias holds NaN",
    ),
    "infinite": (
        lambda f: changed(f, **{"0_bias": torch.full((6,), float("inf"))}),
        "0.bias holds NaN or infinite",
    ),
    "a tensor missing": (lambda f: changed(f, **{"2_bias": None}), "2.bias missing"),
    "a tensor too many": (lambda f: changed(f, extra=torch.zeros(1)), "extra unknown"),
    "another shape": (
        lambda f: changed(f, **{"0_weight": torch.zeros(6, 3, 3, 3)}),
        r"0.weight is \[6, 3, 3, 3\] in the file and \[6, 3, 5, 5\] in the model",
    ),
    "nothing": (lambda f: as_pth({}, f), "holds no state dict"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weight_file_is_refused(kind: str, factory: str, tmp_path: Path) -> None:
    make, message = BAD_WEIGHTS[kind]
    folder = tmp_path / "weights"
    folder.mkdir()
    file = make(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ExportError, match=message) as caught:
        to_onnx(factory, tmp_path / "model.onnx", weights=str(file), overrides=SMALL)
    after = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)]
    assert after == before
    if kind != "NaN" and kind != "infinite":
        assert str(file) in str(caught.value)


def test_weights_of_another_number_of_classes_are_met_with_num_classes(tmp_path: Path) -> None:
    model = torchvision.models.squeezenet1_1(num_classes=12)
    file = as_pth(model.state_dict(), tmp_path)
    spec = "torchvision/squeezenet1_1"
    with pytest.raises(ExportError, match="pass --num-classes 12"):
        resolve(spec, str(file))
    loaded = resolve(spec, str(file), num_classes=12)
    assert loaded.labels == ()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_random_weights_are_the_same_each_time() -> None:
    torch.manual_seed(1)
    first = resolve("torchvision/squeezenet1_1", "none").model.state_dict()
    torch.manual_seed(2)
    second = resolve("torchvision/squeezenet1_1", "none").model.state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])


# --- names, factories, labels, places ---


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "torchvision/resnet81",
            "no classifier or segmentation network 'resnet81'; did you mean .*resnet18",
        ),
        (
            "torchvision/ResNet50",
            "no classifier or segmentation network 'ResNet50'; did you mean .*resnet50",
        ),
        ("torchvision/zzz", "no classifier or segmentation network 'zzz'$"),
        (
            "torchvision/fasterrcnn_resnet50_fpn",
            "no classifier or segmentation network 'fasterrcnn_resnet50_fpn'",
        ),
        ("torchvision/", "no classifier or segmentation network ''"),
        ("timm/resnet51", "no model 'resnet51'; did you mean .*resnet50"),
        ("timm/tf_efficientnet_lite9", "did you mean tf_efficientnet_lite"),
        ("resnet50", "write FILE.onnx, torchvision/NAME, timm/NAME"),
        ("", "write FILE.onnx, torchvision/NAME, timm/NAME"),
        ("hub/resnet50", "write FILE.onnx, torchvision/NAME, timm/NAME"),
    ],
)
def test_unknown_model_name_is_refused_with_a_way_on(spec: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        resolve(spec, "none")


def test_number_of_classes_is_refused_where_it_cannot_be_heeded() -> None:
    with pytest.raises(ExportError, match="num_classes"):
        resolve("torchvision/resnet18", "default", num_classes=5)


def test_factory_in_a_file_is_called(factory: str) -> None:
    source = resolve(factory, overrides=SMALL)
    assert source.name == Path(factory).name  # without folders, which are nobody's business
    assert len(source.model) == 7
    assert not source.model.training


def test_factory_in_a_module_is_called(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "whycam_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(resolve("whycam_test_package.nets:make", overrides=SMALL).model) == 7


def test_factory_in_a_module_beside_the_user_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whycam_test_beside.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    assert len(resolve("whycam_test_beside:make", overrides=SMALL).model) == 7


BAD_FACTORIES = {
    "raises": (
        "def make():\n    raise KeyError('no config')",
        "make failed: KeyError: 'no config'",
    ),
    "wants arguments": ("def make(path): ...", "called without arguments"),
    "no module": ("def make():\n    return 3", "returned int, not a torch.nn.Module"),
    "nothing": ("def make(): ...", "returned NoneType, not a torch.nn.Module"),
    "no such function": ("x = 1", "has no function or class 'make'"),
    "not callable": ("make = 1", "has no function or class 'make'"),
    "import fails": ("import whycam_no_such_package", "cannot import .*whycam_no_such_package"),
    "syntax": ("def make(:", "cannot import .*SyntaxError"),
}


@pytest.mark.parametrize("kind", BAD_FACTORIES)
def test_bad_factory_is_refused_with_its_own_words(kind: str, tmp_path: Path) -> None:
    code, message = BAD_FACTORIES[kind]
    (tmp_path / "whycam_test_bad.py").write_text(textwrap.dedent(code))
    with pytest.raises(ExportError, match=message):
        resolve(f"{tmp_path / 'whycam_test_bad.py'}:make")


@pytest.mark.parametrize("spec", ["nowhere.py:make", "whycam_no_such_package.nets:make"])
def test_factory_that_is_not_there_is_refused(spec: str) -> None:
    with pytest.raises(ExportError, match=r"there is no file nowhere\.py|cannot import"):
        resolve(spec)


def lines(count: int) -> str:
    return "\n".join(f"class {i}" for i in range(count)) + "\n"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lines(6), "there are 6 labels, but the model has 7 classes"),
        ('["a", "b"]', "there are 2 labels, but the model has 7 classes"),
        ('["a", "b"', "not valid JSON"),
        (None, "cannot read labels"),
        (b"\xff\xfe\xff", "cannot read labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    if isinstance(labels, bytes):
        file.write_bytes(labels)
    elif labels is not None:
        file.write_text(labels)
    with pytest.raises(ExportError, match=message):
        to_onnx(linear(), tmp_path / "model.onnx", labels=str(file), overrides=SMALL)
    assert [path.name for path in tmp_path.iterdir() if path != file] == []


@pytest.mark.parametrize("text", [lines(CLASSES), '["class 0", "class 1"]'], ids=["lines", "json"])
def test_labels_come_from_a_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(text)
    found = resolve(linear(), labels=str(tmp_path / "labels.txt"), overrides=SMALL).labels
    assert found[:2] == ("class 0", "class 1")
    assert len(found) == text.count("class")


def test_imagenet_labels_have_a_name_for_every_class() -> None:
    labels = resolve(linear(), labels="imagenet", overrides=SMALL).labels
    assert len(labels) == 1000
    assert (labels[0], labels[281]) == ("tench", "tabby")


@pytest.mark.parametrize("place", ["folder", "file/model.onnx"])
def test_unwritable_place_is_refused_before_the_model_is_loaded(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("in the way")
    steps: list[str] = []
    with pytest.raises(OutputError, match=place.split("/")[0]):
        to_onnx("torchvision/resnet18", tmp_path / place, weights="none", step=steps.append)
    assert steps == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


# --- preprocessing ---


def test_preprocessing_of_torchvision_weights_is_theirs() -> None:
    found = resolve("torchvision/resnet50", "none").preprocess
    assert found.size == (224, 224)
    assert found.resize == (232,)  # IMAGENET1K_V2, not the 256 of the older weights
    assert found.interpolation == "bilinear"
    assert found.mean == (0.485, 0.456, 0.406)
    assert found.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("name", ["squeezenet1_1", "efficientnet_b0", "mobilenet_v3_small"])
def test_view_of_torchvision_weights_equals_their_own_transform(
    name: str, sample_images: list[Path]
) -> None:
    spec = resolve(f"torchvision/{name}", "none").preprocess
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    for path in sample_images:
        ours = normalise(crop_resized(read_image(path), spec)[0], spec)
        theirs = preset(Image.open(path).convert("RGB")).numpy()
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "resnet18.a1_in1k", "convnext_atto"]
)
def test_view_of_timm_models_equals_their_own_transform(
    name: str, sample_images: list[Path]
) -> None:
    timm = pytest.importorskip("timm")
    source = resolve(f"timm/{name}", "none")
    config = timm.data.resolve_data_config({}, model=source.model)
    chain = timm.data.create_transform(**config, is_training=False)
    for path in sample_images:
        view = crop_resized(read_image(path), source.preprocess)[0]
        theirs = chain(Image.open(path).convert("RGB")).numpy()
        np.testing.assert_allclose(normalise(view, source.preprocess), theirs, atol=2e-6)


def test_manifest_holds_the_preprocessing_and_what_was_overridden(tmp_path: Path) -> None:
    overrides = Overrides(
        image_size=(32, 48), resize=50, interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    done = to_onnx(linear(), tmp_path / "model.onnx", overrides=overrides)
    found = whycam.load(done.path).manifest.preprocess
    assert (found.size, found.resize, found.interpolation) == ((32, 48), (50,), "bicubic")
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)
    assert not [note for note in done.notes if "preprocess" in note]


@pytest.mark.parametrize(
    "wanted", [{"image_size": 10**400}, {"resize": 10**400}, {"image_size": -3}, {"resize": -1}]
)
def test_sizes_that_no_image_has_are_refused(tmp_path: Path, wanted: dict[str, int]) -> None:
    with pytest.raises(ExportError, match="unusable preprocessing"):
        to_onnx(linear(), tmp_path / "model.onnx", overrides=Overrides(preprocess="tf", **wanted))


def test_preprocessing_that_nobody_says_is_asked_for_with_a_complete_command(
    factory: str, tmp_path: Path
) -> None:
    with pytest.raises(PreprocessError, match="--preprocess imagenet") as caught:
        to_onnx(factory, tmp_path / "model.onnx")
    assert f"whycam export {factory} -o whycam_test_factory.onnx" in str(caught.value)
    with pytest.raises(PreprocessError, match="Sequential does not state"):
        to_onnx(linear(), tmp_path / "model.onnx", overrides=Overrides(image_size=32))
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.slow
@pytest.mark.shared
def test_top_5_of_lite0_on_400_images_are_those_of_torch(
    lite0: whycam.Explainer, shared_data: Path
) -> None:
    model = resolve(f"{EXAMPLES}/efficientnet_lite0.py:model").model
    spec = lite0.manifest.preprocess
    images = sorted((shared_data / "imagenet-samples").glob("*.JPEG"))
    assert len(images) == 400
    for image in images:
        pixels = normalise(crop_resized(read_image(image), spec)[0], spec)[None]
        with torch.no_grad():
            expected = model(torch.from_numpy(pixels)).topk(5).indices[0].tolist()
        found = lite0.engine.run(
            {"image": pixels, "target": np.array([[-1, -2, -3, -4, -5]])}, ["targets"]
        )
        assert found["targets"][0].tolist() == expected, image.name
