"""ONNX files with an image and a text encoder: which part is explained, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from clip_models import OUTPUTS, random_images, random_texts, save_transformers, write_both_encoders
from networks import SMALL, network
from test_image_encoders import Scores, check_as_the_model, prompts_of, run
from torch import nn

import whycam
from whycam.export import to_onnx
from whycam.export.branches import find_branches
from whycam.export.prompts import embed_prompts
from whycam.export.text_encoder import load_text_encoder
from whycam.runtime.errors import ExportError, RequestError

slow = pytest.mark.slow
NAMES = ["a cat", "a photo of a dog", "猫"]


@slow
@pytest.mark.parametrize("is_traced", [True, False])
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_image_encoder_of_a_whole_file_scores_as_the_file(
    kind: str, is_traced: bool, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    model, file = save_transformers(tmp_path, kind), tmp_path / "model.onnx"
    write_both_encoders(model, file, kind == "CLIP", OUTPUTS, is_traced)
    made = to_onnx(file, tmp_path / "x.onnx", classes="input", methods=["gradcam"])
    assert made.manifest.own_outputs == ("image_embeds",)
    assert any("the input 'pixel_values' alone" in note for note in made.notes)
    texts = random_texts()
    with torch.no_grad():
        prompts = prompts_of(model.get_text_features(input_ids=texts).pooler_output)
    last = "encoder.layers.1.layer_norm1" if kind == "CLIP" else "post_layernorm"
    layer, before = model.vision_model.get_submodule(last), 1 if kind == "CLIP" else 0
    check_as_the_model(made.path, prompts, Scores(model, texts), layer, before)


@slow
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_file_and_tokenizer_are_enough_for_prompts_and_maps(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    model, file = save_transformers(tmp_path, kind), tmp_path / "model.onnx"
    # The embeddings are no outputs: where the products begin is found in the graph.
    write_both_encoders(model, file, kind == "CLIP", ["logits_per_image"])
    target, npz = str(tmp_path / "x.onnx"), str(tmp_path / "p.npz")
    assert "error" not in run(capsys, "export", str(file), "-o", target, "--classes", "input")
    assert run(capsys, "prompts", *NAMES, "--model", str(file), "-o", npz)["names"] == NAMES
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        NAMES, padding=True if kind == "CLIP" else "max_length", return_tensors="np"
    )
    images = random_images(2, 32)
    session = onnxruntime.InferenceSession(file)
    (logits,) = session.run(None, {"pixel_values": images, **tokens})
    scores = torch.from_numpy(logits)
    own = scores.softmax(-1) if kind == "CLIP" else scores.sigmoid()
    explainer = whycam.load(target, prompts=npz)
    feeds = {"pixel_values": images, "image": images, "target": np.array([[0], [2]])}
    found = explainer.engine.run(feeds, ["probabilities", "maps"])
    np.testing.assert_allclose(found["probabilities"], own, rtol=1e-4)
    assert found["maps"].max() > 0.9


def test_a_whole_file_without_classes_says_which_command_works(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_both_encoders(save_transformers(tmp_path, "CLIP"), tmp_path / "m.onnx", True, OUTPUTS)
    with pytest.raises(RequestError, match=r"add --classes input.*--model m\.onnx"):
        to_onnx(tmp_path / "m.onnx", tmp_path / "x.onnx")


class Both(nn.Module):
    """Two small encoders and how they meet."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.image = network(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6))
        self.text, self.way = nn.Embedding(9, 6), way

    def forward(self, image: Any, tokens: Any) -> Any:
        e, w = self.image(image), self.text(tokens).mean(1)
        if self.way == "apart":
            return e, w
        if self.way == "plain products":
            return 3.0 * e @ w.T
        if self.way == "added":
            return (e[:, None] + w[None]).relu().sum(-1)
        e, w = nn.functional.normalize(e), nn.functional.normalize(w)
        if self.way == "scaled first":
            return 20.0 * e @ w.T - 3.0
        assert self.way == "looked at together"
        return (e[:, None] @ w.T).softmax(-1) @ w


def write_pair(path: Path, way: str) -> Path:
    torch.manual_seed(0)
    given = torch.zeros(2, 3, 32, 32), torch.ones(3, 4, dtype=torch.long)
    axes = {"pixels": {0: "n"}, "tokens": {0: "t"}}
    torch.onnx.export(
        Both(way).eval(), given, path, dynamo=False, input_names=list(axes), dynamic_axes=axes,
        opset_version=18,
    )  # fmt: skip
    return path


def test_scale_and_bias_are_read_wherever_the_graph_multiplies(tmp_path: Path) -> None:
    file = write_pair(tmp_path / "both.onnx", "scaled first")
    made = to_onnx(file, tmp_path / "x.onnx", classes="input", overrides=SMALL, methods=["gradcam"])
    assert (made.manifest.task, made.manifest.own_outputs) == ("sigmoid", ("image_embeds",))
    tokens = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 1, 1]])
    images = random_images(2, 32)
    session = onnxruntime.InferenceSession(file)
    (scores,) = session.run(None, {"pixels": images, "tokens": tokens})
    prompts = prompts_of(torch.from_numpy(encode_tokens(file, tokens)))
    engine = whycam.load(made.path, prompts=prompts).engine
    feeds = {"image": images, "target": np.zeros((2, 1), np.int64)}
    found = engine.run(feeds, ["probabilities"])["probabilities"]
    np.testing.assert_allclose(found, torch.from_numpy(scores).sigmoid(), atol=1e-6)


def test_nodes_in_another_order_change_nothing(tmp_path: Path) -> None:
    file = write_pair(tmp_path / "both.onnx", "scaled first")
    proto = onnx.load(file)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    found = find_branches(ir.from_proto(proto).graph)
    expected = find_branches(ir.load(file).graph)
    assert found is not None
    assert expected is not None
    assert str(found.image_embedding) == str(expected.image_embedding)
    assert str(found.text_embedding) == str(expected.text_embedding)


def encode_tokens(file: Path, tokens: np.ndarray) -> np.ndarray:
    """Look the tokens up in the file's own table, as its text encoder does."""
    tables = [onnx.numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer]
    (table,) = [each for each in tables if each.shape == (9, 6)]
    return table[tokens].mean(1)


REFUSED = {
    "plain products": (RequestError, "factor of the cosine similarities is not known.*--logit-sc"),
    "apart": (RequestError, "factor of the cosine similarities is not known.*--logit-scale"),
    "added": (ExportError, r"image and text meet at the node .* \(Add\), which is no product"),
    "looked at together": (ExportError, r"image and text meet"),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_is_no_cosine_similarity_is_refused_or_asked_for(way: str, tmp_path: Path) -> None:
    kind, message = REFUSED[way]
    with pytest.raises(kind, match=message):
        to_onnx(
            write_pair(tmp_path / "both.onnx", way), tmp_path / "x.onnx", classes="input",
            overrides=SMALL,
        )  # fmt: skip
    assert not (tmp_path / "x.onnx").exists()


def test_encoders_that_do_not_meet_are_explained_with_a_stated_scale(tmp_path: Path) -> None:
    made = to_onnx(
        write_pair(tmp_path / "both.onnx", "apart"), tmp_path / "x.onnx", classes="input",
        overrides=SMALL, logit_scale=math.log(20), task="softmax", methods=["gradcam"],
    )  # fmt: skip
    assert made.manifest.class_embeddings == 6


def test_text_encoder_of_a_file_without_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    file = write_pair(tmp_path / "both.onnx", "scaled first")
    with pytest.raises(ExportError, match=r"no tokenizer_config.json beside .*both.onnx"):
        load_text_encoder(str(file))


def test_text_encoder_fills_texts_where_no_mask_tells_their_length(tmp_path: Path) -> None:
    """SigLIP's texts are filled to the length of training, which changes the embedding."""
    pytest.importorskip("transformers")
    model = save_transformers(tmp_path, "Siglip")
    write_both_encoders(model, tmp_path / "m.onnx", False, OUTPUTS)
    of_file = embed_prompts(load_text_encoder(str(tmp_path / "m.onnx")), NAMES)
    of_model = embed_prompts(load_text_encoder(str(tmp_path)), NAMES)
    np.testing.assert_allclose(of_file.embeddings, of_model.embeddings, atol=1e-5)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 8


def test_a_file_that_fixes_how_many_texts_it_takes_embeds_any_number(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = save_transformers(tmp_path, "CLIP")
    write_both_encoders(model, tmp_path / "m.onnx", True, OUTPUTS, is_free=False)
    found = embed_prompts(load_text_encoder(str(tmp_path / "m.onnx")), NAMES)
    expected = embed_prompts(load_text_encoder(str(tmp_path)), NAMES)
    np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-5)


@slow
def test_a_file_that_fixes_how_many_images_it_takes_explains_any_number(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = save_transformers(tmp_path, "CLIP")
    write_both_encoders(model, tmp_path / "m.onnx", True, OUTPUTS, is_free=False)
    made = to_onnx(tmp_path / "m.onnx", tmp_path / "x.onnx", classes="input", methods=["gradcam"])
    images, texts = torch.from_numpy(random_images(3, 32)), random_texts()
    with torch.no_grad():
        logits = Scores(model, texts)(images)
        prompts = prompts_of(model.get_text_features(input_ids=texts).pooler_output)
    engine = whycam.load(made.path, prompts=prompts).engine
    feeds = {"image": images.numpy(), "target": np.zeros((3, 1), np.int64)}
    answer = engine.run(feeds, ["probabilities"])["probabilities"]
    np.testing.assert_allclose(answer, logits.softmax(-1), rtol=1e-4)


def test_an_explained_file_is_told_by_its_own_name_first(tmp_path: Path) -> None:
    made = to_onnx(
        write_pair(tmp_path / "both.onnx", "scaled first"), tmp_path / "x.onnx", classes="input",
        overrides=SMALL, methods=["gradcam"],
    )  # fmt: skip
    with pytest.raises(ExportError, match="was made by whycam export already"):
        to_onnx(made.path, tmp_path / "y.onnx", classes="input", overrides=SMALL)


def test_a_classifier_with_another_input_is_refused_as_before(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"one input of four axes.*'pixels'.*'tokens'"):
        to_onnx(write_pair(tmp_path / "b.onnx", "added"), tmp_path / "x.onnx", overrides=SMALL)
