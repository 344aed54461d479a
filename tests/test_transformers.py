"""Models of Hugging Face's transformers: their folder, weights, preprocessing and class names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from whycam.export import Overrides, to_onnx
from whycam.export.metadata import is_trained_on_imagenet, read_class_names
from whycam.export.resolve import resolve
from whycam.runtime.errors import ExportError, MissingExtraError

NAMES = ("cat", "dog", "fish")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small ResNet as ``save_pretrained`` writes it, with an image processor's settings."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12],
        depths=[1, 1],
        layer_type="basic",
        id2label=dict(enumerate(NAMES)),
    )
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "net")
    settings: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "do_normalize": True,
    }
    (tmp_path / "net/preprocessor_config.json").write_text(json.dumps(settings))
    return tmp_path / "net"


def test_folder_is_exported_with_its_weights_names_and_preprocessing(folder: Path) -> None:
    import onnxruntime
    import transformers

    made = to_onnx(str(folder), folder / "x.onnx", methods=["gradcam"], outputs=["raw"])
    assert (made.manifest.labels, made.manifest.own_outputs) == (NAMES, ("logits",))
    assert (made.manifest.preprocess.size, made.manifest.preprocess.std) == ((32, 32), (0.25,) * 3)
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(folder / "x.onnx"))
    (found,) = session.run(["probabilities"], {"image": image, "target": np.array([[0], [1]])})
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(image)).logits.softmax(-1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_module_tells_its_class_names(folder: Path) -> None:
    import transformers

    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    source = resolve(model, overrides=Overrides(preprocess="imagenet", image_size=32))
    assert source.labels == NAMES
    assert "labels read from the model's config.id2label" in source.notes


def test_checkpoint_without_its_head_is_refused(folder: Path) -> None:
    import safetensors.torch

    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "classifier" not in k}
    safetensors.torch.save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"lack 2 tensors of the model, as classifier"):
        resolve(str(folder))


def test_folder_of_another_task_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["ResNetModel"]}))
    with pytest.raises(ExportError, match=r"ResNetModel, which is no image classifier"):
        resolve(str(folder))


def test_absent_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"whycam\[transformers\]"):
        resolve(str(folder))


@pytest.mark.parametrize(
    ("tag", "classes", "proved"),
    [
        ("a1_in1k", 1000, True),
        ("fb_in22k_ft_in1k_384", 1000, True),
        ("in1k", 1000, True),
        ("augreg_in21k", 1000, False),
        ("fb_dino", 1000, False),
        ("sign1k", 1000, False),
        ("a1_in1k", 10, False),
        (None, 1000, False),
    ],
)
def test_imagenets_names_need_a_tag_that_says_so(tag: Any, classes: int, proved: bool) -> None:
    assert is_trained_on_imagenet({"tag": tag}, classes) is proved


def test_default_names_of_hugging_face_name_nothing() -> None:
    assert read_class_names({"id2label": {0: "LABEL_0", 1: "LABEL_1"}}) == ()
    assert read_class_names({"id2label": {"1": "dog", "0": "cat"}}) == ("cat", "dog")
    assert read_class_names({"label_names": ["a", "b"]}) == ("a", "b")
