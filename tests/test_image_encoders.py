"""Every kind of image encoder of open_clip and transformers: scores, gradients, maps, commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_models import (
    CLASSES,
    LENGTH,
    TOWERS,
    Tower,
    random_images,
    random_texts,
    save_transformers,
)
from PIL import Image
from torch import nn

import whycam
from whycam.cli import main
from whycam.export import Overrides, to_onnx, to_plan
from whycam.runtime.engines.plan import Range
from whycam.runtime.errors import DataError, ExportError
from whycam.runtime.prompts import Prompts

slow = pytest.mark.slow
TARGETS = np.array([[1], [2]])
RAW = ["probabilities", "activations", "gradients", "maps"]


def prompts_of(embeddings: torch.Tensor) -> Prompts:
    names = tuple(f"prompt {index}" for index in range(len(embeddings)))
    return Prompts(names, embeddings.detach().float().numpy())


class Scores(nn.Module):
    """A model with fixed texts: class scores of images, as the model itself computes them."""

    def __init__(self, model: Any, texts: torch.Tensor) -> None:
        super().__init__()
        self.model, self.texts = model, texts

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if hasattr(self.model, "get_text_features"):
            return self.model(pixel_values=images, input_ids=self.texts).logits_per_image
        if hasattr(self.model, "text_decoder"):  # CoCa, whose captions are another thing
            image, text = self.model.encode_image(images), self.model.encode_text(self.texts)
            return self.model.logit_scale.exp() * image @ text.T
        return self.model.get_logits(images, self.texts)[0]


def arranged(tokens: torch.Tensor, before: int | None, grid: tuple[int, int]) -> torch.Tensor:
    """[N, T, K] to [N, K, h, w], as pytorch-grad-cam's reshape_transform."""
    if before is None:
        return tokens
    if before < 0:
        return tokens.permute(0, 3, 1, 2)
    cells = tokens[:, before : before + grid[0] * grid[1]]
    return cells.reshape(len(tokens), *grid, -1).permute(0, 3, 1, 2)


def check_as_the_model(
    path: Path, prompts: Prompts | None, scores: Scores, layer: nn.Module, before: int | None
) -> None:
    """Compare a file with float64 autograd and pytorch-grad-cam."""
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    explainer = whycam.load(path, prompts=prompts, threads=1)
    manifest = explainer.manifest
    images = random_images(2, manifest.preprocess.size[0])
    found = explainer.engine.run({"image": images, "target": TARGETS}, RAW)
    scores = scores.double()
    caught: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _m, _i, output: caught.append(output))
    double = torch.from_numpy(images).double()
    logits = scores(double)
    handle.remove()
    own = logits.sigmoid() if manifest.task == "sigmoid" else logits.softmax(-1)
    np.testing.assert_allclose(found["probabilities"], own.detach(), rtol=1e-4, atol=1e-6)
    (true,) = torch.autograd.grad(logits[range(2), TARGETS[:, 0]].sum(), caught[0])
    grid = manifest.activations[1:]
    for key, tensor in (("activations", caught[0].detach()), ("gradients", true)):
        expected = arranged(tensor, before, grid).numpy()
        error = np.abs(found[key].reshape(expected.shape) - expected).max()
        assert error <= 1e-4 * np.abs(expected).max(), key
    targets = [ClassifierOutputTarget(int(target)) for target in TARGETS[:, 0]]
    with grad_cam.GradCAM(scores, [layer], lambda tokens: arranged(tokens, before, grid)) as cam:
        expected = cam(double, targets)
    assert expected.max() > 0.5
    np.testing.assert_allclose(found["maps"][:, 0], expected, atol=1e-4)


def export_tower(tower: Tower, model: Any, path: Path, classes: Any) -> Any:
    overrides = Overrides(preprocess="zero-one", image_size=tower.side)
    layer = None if tower.is_default else tower.layer
    return to_onnx(
        model, path, classes=classes, overrides=overrides, methods=["gradcam"], target_layer=layer
    )


@slow
@pytest.mark.parametrize("name", TOWERS)
def test_encoders_of_open_clip_are_explained_as_they_score(name: str, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    tower = TOWERS[name]
    model, texts = tower.build(), random_texts()
    made = export_tower(tower, model, tmp_path / "x.onnx", "input")
    assert made.manifest.task == ("sigmoid" if tower.is_siglip else "softmax")
    with torch.no_grad():
        prompts = prompts_of(model.encode_text(texts))
    layer = model.visual.get_submodule(tower.layer)
    check_as_the_model(made.path, prompts, Scores(model, texts), layer, tower.before)


@slow
@pytest.mark.parametrize("name", ["RN50", "ViT", "SigLIP"])
def test_classes_inside_the_file_score_as_the_model(name: str, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    tower = TOWERS[name]
    model, texts = tower.build(), random_texts()
    with torch.no_grad():
        made = export_tower(tower, model, tmp_path / "x.onnx", prompts_of(model.encode_text(texts)))
    assert (made.manifest.num_classes, made.manifest.class_embeddings) == (CLASSES, None)
    layer = model.visual.get_submodule(tower.layer)
    check_as_the_model(made.path, None, Scores(model, texts), layer, tower.before)


@slow
@pytest.mark.parametrize("name", ["RN50", "ViT", "SigLIP"])
def test_every_engine_takes_the_class_embeddings(name: str, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    tower = TOWERS[name]
    model = tower.build()
    made = export_tower(tower, model, tmp_path / "x.onnx", "input")
    with torch.no_grad():
        prompts = prompts_of(model.encode_text(random_texts()))
    feeds = {"image": random_images(2, tower.side), "target": TARGETS}
    answers = [
        whycam.load(made.path, engine, prompts=prompts, threads=1).engine.run(feeds, RAW)
        for engine in ("onnxruntime", "openvino")
    ]
    for key in RAW:
        largest = np.abs(answers[0][key]).max()
        np.testing.assert_allclose(answers[1][key], answers[0][key], atol=1e-4 * largest)
    pytest.importorskip("tensorrt_rtx")
    plan = to_plan(made.path, tmp_path / "x.plan", prompts=Range(2, 4, 1000)).plan
    (tensor,) = [each for each in plan.inputs if each.name == "class_embeddings"]
    assert (tensor.shape, plan.prompts) == ((-1, LENGTH), Range(2, 4, 1000))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json"])
    printed = json.loads(capsys.readouterr().out)
    return printed if ended.value.code == 0 else printed["error"]


@slow
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_folder_of_transformers_goes_from_export_to_explanation(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "model"
    save_transformers(folder, kind)
    file, npz, png = (str(tmp_path / name) for name in ("x.onnx", "p.npz", "x.png"))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(png)
    names = ["a cat", "a photo of a dog", "猫"]
    made = run(capsys, "export", str(folder), "-o", file, "--classes", "input")
    assert (made["manifest"]["target_layer"].split(".")[-1], made["notes"]) != ("", [])
    assert run(capsys, "prompts", *names, "--model", f"transformers/{folder}", "-o", npz)["names"]
    assert run(capsys, "verify", file)["ok"]
    found = run(capsys, "explain", file, png, "--prompts", npz, "--target", "猫")
    assert found["explanations"][0]["label"] == "猫"

    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = True if kind == "CLIP" else "max_length"
    texts = tokenizer(names, padding=padding, return_tensors="pt")
    images = torch.from_numpy(pixels).float().permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        logits = model(pixel_values=(images - 0.5) / 0.25, **texts).logits_per_image[0]
    own = logits.softmax(-1) if kind == "CLIP" else logits.sigmoid()
    explainer = whycam.load(file, prompts=npz)
    assert explainer.manifest.task == ("softmax" if kind == "CLIP" else "sigmoid")
    np.testing.assert_allclose(explainer.classify([pixels])[0], own, rtol=1e-4)
    assert explainer.explain(pixels, "猫").map.max() > 0.5


@slow
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_encoders_of_transformers_are_explained_as_they_score(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model, texts = save_transformers(tmp_path / "model", kind), random_texts()
    made = to_onnx(tmp_path / "model", tmp_path / "x.onnx", classes="input", methods=["gradcam"])
    with torch.no_grad():
        prompts = prompts_of(model.get_text_features(input_ids=texts).pooler_output)
    name = made.manifest.target_layer.removeprefix("model.")
    layer = model.get_submodule(name)
    before = 1 if kind == "CLIP" else 0
    assert name.endswith("layers.1.layer_norm1" if kind == "CLIP" else "post_layernorm")
    check_as_the_model(made.path, prompts, Scores(model, texts), layer, before)


def test_models_of_transformers_say_what_they_need(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from whycam.export.text_encoder import load_text_encoder

    model = save_transformers(tmp_path / "both", "CLIP")
    with pytest.raises(ExportError, match=r"CLIPModel.*add --classes input"):
        to_onnx(tmp_path / "both", tmp_path / "x.onnx")
    transformers.CLIPVisionModelWithProjection(model.config.vision_config).save_pretrained(
        tmp_path / "vision"
    )
    with pytest.raises(ExportError, match=r"CLIPVisionModelWithProjection.*write a factory"):
        to_onnx(tmp_path / "vision", tmp_path / "x.onnx", classes="input")
    with pytest.raises(ExportError, match=r"image and a text encoder"):
        load_text_encoder(f"transformers/{tmp_path / 'vision'}")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "classes")
    with pytest.raises(ExportError, match=r"classes of its own: leave out --classes"):
        to_onnx(tmp_path / "classes", tmp_path / "x.onnx", classes="input")


def test_a_checkpoint_without_its_text_encoder_embeds_nothing(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    from whycam.export.text_encoder import load_text_encoder

    save_transformers(tmp_path, "CLIP")
    file = tmp_path / "model.safetensors"
    kept = {k: v for k, v in safetensors.load_file(file).items() if "text_model" not in k}
    safetensors.save_file(kept, file, {"format": "pt"})
    with pytest.raises(ExportError, match=r"lack \d+ tensors of the model, as text_model"):
        load_text_encoder(str(tmp_path))


def test_a_text_longer_than_the_encoder_reads_is_refused(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    from whycam.export.prompts import embed_prompts
    from whycam.export.text_encoder import encode_by_open_clip, load_text_encoder

    long = "a photo of a cat a photo of a dog"
    model = save_transformers(tmp_path, "CLIP")
    with pytest.raises(DataError, match=f"'{long}' is longer than the 8 tokens"):
        embed_prompts(load_text_encoder(str(tmp_path)), ["a cat", long])
    del model
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32}
    clip = open_clip.CLIP(8, vision, text).eval()
    encoder = encode_by_open_clip(clip, open_clip.get_tokenizer("RN50", context_length=8))
    with pytest.raises(DataError, match="longer than the 8 tokens"):
        embed_prompts(encoder, ["a cat", long])
    assert embed_prompts(encoder, ["a cat", "a dog"]).embeddings.shape == (2, 8)
