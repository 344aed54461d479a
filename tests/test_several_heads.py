"""Several classification heads in one file: targets HEAD:CLASS, and probabilities of each head."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from networks import SMALL, network
from numpy.typing import NDArray
from torch import nn

import whycam
from whycam.calibrate.dataset import open_dataset
from whycam.calibrate.evaluate import check_measurable
from whycam.calibrate.int8 import calibrate_int8
from whycam.export import to_onnx
from whycam.export.labels import name_classes, read_labels
from whycam.export.reference_scores import compute_relative_drop
from whycam.runtime.errors import ExportError, ModelFileError, RequestError
from whycam.runtime.manifest import parse
from whycam.runtime.manifest_parts import OutputHead

AGES, SEXES, TAGS = 4, 2, 3
PIXELS = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
IMAGE = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)


class Faces(nn.Module):
    """A head of classes, one logit, and independent labels on one backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.age, self.sex, self.tags = (nn.Linear(8, count) for count in (AGES, 1, TAGS))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.net(x)
        return {
            "features": features,
            "tags": self.tags(features).sigmoid(),
            "sex": self.sex(features),
            "age": self.age(features)[:, :, None],
        }


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    torch.manual_seed(0)
    model = Faces().eval()
    path = tmp_path_factory.mktemp("heads") / "x.onnx"
    made = to_onnx(
        model,
        path,
        overrides=SMALL,
        head=["age", "sex", "tags"],
        methods=["gradcam", "ablation"],
        outputs=["raw", "tft"],
    )
    return SimpleNamespace(model=model, path=path, made=made, manifest=made.manifest)


def run(faces: SimpleNamespace, target: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(str(faces.path))
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": PIXELS, "target": target}), strict=True))


def class_scores(model: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every class's score and probability, [N, 9], by PyTorch alone."""
    features = model.net(image)
    age, sex, tags = model.age(features), model.sex(features), model.tags(features)
    scores = torch.cat([age, -sex / 2, sex / 2, tags], 1)
    yes = sex.sigmoid()
    return scores, torch.cat([age.softmax(1), 1 - yes, yes, tags.sigmoid()], 1)


def test_each_head_has_probabilities_of_its_own(faces: SimpleNamespace) -> None:
    found = run(faces, np.array([[-1], [-1]]))
    with torch.no_grad():
        _, expected = class_scores(faces.model, torch.from_numpy(PIXELS))
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    heads = [found[f"probabilities_{name}"] for name in ("age", "sex", "tags")]
    assert [each.shape[1] for each in heads] == [AGES, SEXES, TAGS]
    np.testing.assert_array_equal(np.hstack(heads), found["probabilities"])
    assert [h.task for h in faces.manifest.heads] == ["softmax", "binary", "sigmoid"]


def test_gradients_of_a_class_of_any_head_are_autograds(faces: SimpleNamespace) -> None:
    target = np.array([[1, 5, 7], [4, 8, 0]])
    found = run(faces, target)
    model, image = faces.model.double(), torch.from_numpy(PIXELS).double()
    layer = dict(model.named_modules())[faces.manifest.target_layer]
    kept: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _m, _i, out: kept.append(out))
    scores, _ = class_scores(model, image)
    handle.remove()
    for row, column in np.ndindex(*target.shape):
        score = scores[row, target[row, column]]
        (expected,) = torch.autograd.grad(score, kept[0], retain_graph=True)
        np.testing.assert_allclose(found["gradients"][row, column], expected[row], atol=1e-7)
    model.float()


def test_ablation_weights_come_from_the_classs_own_head(faces: SimpleNamespace) -> None:
    target = np.array([[2, 4, 6], [3, 5, 8]])
    found = run(faces, target)
    model = faces.model
    with torch.no_grad():
        pooled = torch.from_numpy(found["activations"]).mean((2, 3))
        for channel in (0, 5):
            without = pooled.clone()
            without[:, channel] = 0
            y, y_k = (
                torch.cat(
                    [
                        model.age(f).softmax(1),
                        1 - model.sex(f).sigmoid(),
                        model.sex(f).sigmoid(),
                        model.tags(f).sigmoid(),
                    ],
                    1,
                )
                for f in (pooled, without)
            )
            expected = ((y - y_k) / y).gather(1, torch.from_numpy(target))
            np.testing.assert_allclose(
                found["ablation_weights"][:, :, channel], expected, atol=2e-5
            )


def test_ranks_go_by_head(faces: SimpleNamespace) -> None:
    explainer = whycam.load(faces.path, threads=1)
    (row,) = explainer.classify([IMAGE])
    first = explainer.explain(IMAGE)
    assert first.index == row[:AGES].argmax()
    assert first.label == f"age:{first.index}"
    second = explainer.explain(IMAGE, "sex:-2", tft=True)
    assert (second.index, second.task) == (AGES + row[AGES : AGES + 2].argmin(), "binary")
    last = explainer.explain(IMAGE, "tags:-3")
    assert (last.index, last.task) == (6 + row[6:].argmin(), "sigmoid")
    assert explainer.explain(IMAGE, "tags:1").index == 7
    for wrong in ("sex:-3", "age:9", "size:0", -5):
        with pytest.raises(RequestError, match=r"class"):
            explainer.explain(IMAGE, wrong)


def test_measurements_of_one_heads_classes_are_refused_before_any_work(
    faces: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"heads age, sex, tags.*--head age"):
        check_measurable(faces.manifest)
    (tmp_path / "data.csv").write_text("a.png,x\n")
    with pytest.raises(RequestError, match=r"heads age, sex, tags"):
        calibrate_int8(faces.path, tmp_path / "y.onnx", open_dataset(tmp_path / "data.csv"))


HEADS = (OutputHead("age", "softmax", 3), OutputHead("sex", "binary", 2))


def test_labels_of_several_heads_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"sex": ["male"], "age": ["young", "adult", "old"]}))
    both = [("young", "adult", "old"), ("not male", "male")]
    assert name_classes(read_labels(str(file)), HEADS) == both
    assert name_classes(["young", "adult", "old", "not male", "male"], HEADS) == both
    assert name_classes(["sex:male"], HEADS) == [(), ("not male", "male")]
    with pytest.raises(ExportError, match=r"4 labels, but the heads age, sex have 5 classes"):
        name_classes(["young", "adult", "old", "male"], HEADS)
    with pytest.raises(ExportError, match=r"none of the heads age, sex"):
        name_classes(["sex:male", "shape:round"], HEADS)


@pytest.mark.parametrize(
    "change",
    [
        {"heads": ()},
        {"num_classes": 10},
        {"labels": ()},
        {"task": "softmax"},
        {"top": 1},
    ],
)
def test_manifest_whose_heads_do_not_fit_is_damaged(
    change: dict[str, Any], faces: SimpleNamespace
) -> None:
    document = msgspec.json.decode(faces.manifest.to_json())
    with pytest.raises(ModelFileError, match="damaged"):
        parse(msgspec.json.encode(document | change), "x.onnx")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"head": ["age", "age"]}, r"name each output once, of: 'features' \[N, 8\]"),
        ({"head": ["age", "hair"]}, r"no output 'hair'; there are: .*'age' \[N, 4, 1\]"),
        ({"head": ["age", "sex"], "task": "none"}, r"several heads of values"),
        ({"head": ["age", "sex"], "top": 2}, r"most probable classes of one head"),
        ({}, r"several outputs.*'sex' \[N, 1\].*--head NAME,NAME"),
    ],
)
def test_heads_that_cannot_be_explained_are_refused(
    arguments: dict[str, Any], reason: str, faces: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises((ExportError, RequestError), match=reason):
        to_onnx(faces.model, tmp_path / "x.onnx", overrides=SMALL, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_relative_drop_of_a_head_ignores_the_others() -> None:
    rng = np.random.default_rng(0)
    raw, without = rng.standard_normal((2, 1, 4))
    (found,) = compute_relative_drop(raw, without, np.array([1]), "prob", HEADS)
    y, y_k = (np.exp(z[0, :3]) / np.exp(z[0, :3]).sum() for z in (raw, without))
    assert found == pytest.approx((y[1] - y_k[1]) / y[1])
