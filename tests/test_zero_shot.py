"""Image encoders whose classes are embeddings: an input of the graph, or inside the file."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cache import exported
from networks import SIZE, SMALL, network
from torch import nn

import whycam
from whycam.export import to_onnx
from whycam.runtime.errors import DataError, EngineError, ExportError, RequestError
from whycam.runtime.onnxfile import read_manifest
from whycam.runtime.prompts import Prompts, example_prompts, read_prompts, write_prompts

LENGTH, SCALE, BIAS = 10, 20.0, -3.0
IMAGES = list(np.random.default_rng(3).integers(0, 256, (3, 40, 48, 3), np.uint8))
ENGINES = ("onnxruntime", "openvino")


def encoder() -> nn.Module:
    """A convolutional image encoder with a curved head."""
    return network(
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 36, 12), nn.SiLU(), nn.Linear(12, LENGTH)
    )


def prompts(count: int, seed: int = 1) -> Prompts:
    embeddings = 3 * np.random.default_rng(seed).standard_normal((count, LENGTH))
    return Prompts(tuple(f"prompt {i}" for i in range(count)), embeddings.astype(np.float32))


def zero_shot(classes: Any = "input", task: str = "softmax", **options: Any) -> Path:
    bias = BIAS if task == "sigmoid" else None
    return exported(
        encoder,
        overrides=SMALL,
        task=task,
        classes=classes,
        logit_scale=math.log(SCALE),
        logit_bias=bias,
        **options,
    )


@cache
def doubled() -> nn.Module:
    return encoder().double()


def logits(activations: torch.Tensor, classes: Prompts, task: str) -> torch.Tensor:
    """Score activations by PyTorch alone, in float64."""
    embedding = nn.functional.normalize(doubled()[4:](activations))
    text = nn.functional.normalize(torch.from_numpy(classes.embeddings).double())
    return SCALE * embedding @ text.T + (BIAS if task == "sigmoid" else 0.0)


def probabilities(scores: torch.Tensor, task: str) -> torch.Tensor:
    return {"softmax": scores.softmax(-1), "sigmoid": scores.sigmoid(), "none": scores}[task]


def answers(
    path: Path, classes: Prompts | None, targets: list[list[int]], outputs: list[str], **how: Any
) -> dict[str, np.ndarray]:
    explainer = whycam.load(path, prompts=classes, **how)
    feeds = {"image": inputs(len(targets)), "target": np.array(targets, np.int64)}
    return explainer.engine.run(feeds, outputs)


def inputs(count: int) -> np.ndarray:
    generator = np.random.default_rng(5)
    return generator.standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)


RAW = ["probabilities", "targets", "activations", "gradients"]


@pytest.mark.parametrize("score", ["logit", "prob"])
@pytest.mark.parametrize("task", ["softmax", "sigmoid"])
def test_gradients_are_those_of_autograd_for_prompts_the_export_never_saw(
    task: str, score: str
) -> None:
    classes = prompts(4)
    found = answers(zero_shot(task=task, score=score), classes, [[2, 0], [-1, 3]], RAW)
    a = torch.from_numpy(found["activations"]).double().requires_grad_(True)
    scores = logits(a, classes, task)
    every = probabilities(scores, task)
    np.testing.assert_allclose(found["probabilities"], every.detach(), atol=1e-6)
    assert found["targets"][1, 0] == int(every[1].argmax())
    explained = every if score == "prob" else scores
    for column in range(2):
        target = torch.from_numpy(found["targets"][:, column : column + 1])
        total = explained.gather(1, target).sum()
        (true,) = torch.autograd.grad(total, a, retain_graph=True)
        error = np.abs(found["gradients"][:, column] - true.numpy()).max()
        assert error < 1e-5 * float(true.abs().max())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task", ["softmax", "sigmoid"])
def test_new_prompts_equal_an_export_with_these_classes_inside(task: str, engine: str) -> None:
    classes = prompts(6)
    outputs = [*RAW, "maps"]
    inside = zero_shot(classes.embeddings, task, labels=list(classes.names))
    expected = answers(inside, None, [[5], [-2]], outputs)
    found = answers(zero_shot(task=task), classes, [[5], [-2]], outputs, engine=engine)
    for name in outputs:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5)
    assert read_manifest(inside).labels == classes.names


@pytest.mark.parametrize("engine", ENGINES)
def test_one_engine_serves_prompts_of_any_number(engine: str) -> None:
    explainer = whycam.load(zero_shot(), engine, prompts=prompts(2))
    for count in (3, 40, 2):
        classes = prompts(count, seed=count)
        again = explainer.with_prompts(classes)
        alone = whycam.load(zero_shot(), engine, prompts=classes)
        np.testing.assert_allclose(again.classify(IMAGES), alone.classify(IMAGES), atol=1e-6)
        assert again.classify(IMAGES).shape == (3, count)
        assert again.explain(IMAGES[0]).label in classes.names


def test_ranks_beyond_the_last_prompt_are_refused_and_those_before_are_right() -> None:
    explainer = whycam.load(zero_shot(), prompts=prompts(2))
    first, second = explainer.explain(IMAGES[0], [-1, -2])
    assert {first.index, second.index} == {0, 1}
    assert first.probability >= second.probability
    with pytest.raises(RequestError, match="ranks from -1"):
        explainer.explain(IMAGES[0], -3)


def test_a_prompt_is_a_target_by_its_name() -> None:
    explainer = whycam.load(zero_shot(), prompts=prompts(4))
    assert explainer.explain(IMAGES[0], "prompt 3").index == 3


def test_images_of_a_batch_are_explained_as_each_alone() -> None:
    explainer = whycam.load(zero_shot(), prompts=prompts(4))
    for together, image in zip(explainer.explain(IMAGES, 1), IMAGES, strict=True):
        alone = explainer.explain(image, 1)
        np.testing.assert_allclose(together.map, alone.map, atol=1e-5)


def test_one_prompt_is_judged_by_itself_with_sigmoid_and_refused_with_softmax() -> None:
    one, several = prompts(1), prompts(3)
    sigmoid = zero_shot(task="sigmoid")
    alone = whycam.load(sigmoid, prompts=one).classify(IMAGES)
    among = whycam.load(sigmoid, prompts=several).classify(IMAGES)
    np.testing.assert_allclose(
        alone[:, 0],
        whycam.load(
            sigmoid, prompts=Prompts(("a", "b"), np.concatenate([one.embeddings, -one.embeddings]))
        ).classify(IMAGES)[:, 0],
        atol=1e-6,
    )
    assert among.shape == (3, 3)
    with pytest.raises(RequestError, match=r"probability 1.*add prompts"):
        whycam.load(zero_shot(), prompts=one)
    with pytest.raises(RequestError, match="probability 1"):
        to_onnx(encoder(), "x.onnx", overrides=SMALL, classes=one, logit_scale=1.0, task="softmax")


def test_similarity_itself_is_explained_with_task_none() -> None:
    one = prompts(1)
    found = answers(zero_shot(task="none"), one, [[0]], RAW)
    a = torch.from_numpy(found["activations"]).double()
    np.testing.assert_allclose(found["probabilities"], logits(a, one, "none").detach(), atol=1e-5)


@pytest.mark.parametrize("task", ["softmax", "sigmoid"])
def test_ablation_weighs_channels_by_probabilities_without_them(task: str) -> None:
    classes = prompts(3)
    path = zero_shot(task=task, methods=["gradcam", "ablation"])
    names = ["targets", "activations", "ablation_weights"]
    found = answers(path, classes, [[1]], names)
    a = torch.from_numpy(found["activations"]).double()
    whole = probabilities(logits(a, classes, task), task)[0, 1]
    for channel in range(a.shape[1]):
        without = a.clone()
        without[:, channel] = 0
        other = probabilities(logits(without, classes, task), task)[0, 1]
        expected = float((whole - other) / whole)
        assert found["ablation_weights"][0, 0, channel] == pytest.approx(expected, abs=1e-4)


def test_sweep_inside_the_graph_is_the_runtimes() -> None:
    classes = prompts(3)
    inside = whycam.load(zero_shot(outputs=["raw", "tft"]), prompts=classes)
    outside = whycam.load(zero_shot(), prompts=classes)
    for image in IMAGES:
        a, b = (each.explain(image, 2, tft=True) for each in (inside, outside))
        np.testing.assert_allclose(a.rpi, b.rpi, rtol=1e-3, atol=1e-5)
        assert a.threshold == b.threshold


def test_prompts_and_files_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"needs prompts.*--prompts FILE.npz"):
        whycam.load(zero_shot())
    other = Prompts(("a", "b"), np.ones((2, LENGTH + 1), np.float32))
    with pytest.raises(RequestError, match=f"have {LENGTH + 1} numbers.*takes {LENGTH}"):
        whycam.load(zero_shot(), prompts=other)
    inside = zero_shot(prompts(3).embeddings)
    with pytest.raises(RequestError, match="3 classes of its own"):
        whycam.load(inside, prompts=prompts(3))
    top = zero_shot(top=3)
    with pytest.raises(RequestError, match="3 most probable classes, and there are 2"):
        whycam.load(top, prompts=prompts(2))
    assert len(whycam.load(top, prompts=prompts(3)).explain(IMAGES[0], [-1, -2, -3])) == 3


def test_an_engine_is_checked_by_the_example_classes_and_fed_nothing_else_silently() -> None:
    from whycam.runtime.engines.opening import open_engine
    from whycam.runtime.engines.selftest import check

    path = zero_shot()
    manifest = read_manifest(path)
    engine = open_engine(path, manifest, "openvino")
    assert [each.complaint for each in check(engine, manifest)] == [None, None]
    feeds = {"image": inputs(1), "target": np.zeros((1, 1), np.int64)}
    with pytest.raises(EngineError, match="class_embeddings"):
        engine.run(feeds, ["probabilities"])
    # Its references are of other classes than the prompts'.
    assert not whycam.load(path, prompts=prompts(5)).manifest.references
    assert whycam.load(path, prompts=example_prompts(manifest)).manifest.references


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown scale": ({"classes": "input", "task": "softmax"}, RequestError, "--logit-scale"),
    "factor, not its logarithm": (
        {"classes": "input", "logit_scale": 100.0, "task": "softmax"},
        RequestError,
        "for a factor of 100 state 4.6052",
    ),
    "unknown task": ({"classes": "input", "logit_scale": 1.0}, RequestError, "--task sigmoid"),
    "binary": ({"classes": "input", "logit_scale": 1.0, "task": "binary"}, RequestError, "binary"),
    "scale of a classifier": ({"logit_scale": 1.0}, RequestError, "add --classes"),
    "number of classes": ({"classes": "input", "num_classes": 3}, RequestError, "leave out"),
    "another length": (
        {"classes": np.ones((2, 3), np.float32), "logit_scale": 1.0, "task": "softmax"},
        ExportError,
        f"have 3 numbers each.*has {LENGTH}",
    ),
    "labels of an input": (
        {"classes": "input", "logit_scale": 1.0, "task": "softmax", "labels": ["a"]},
        RequestError,
        "prompts hold the names",
    ),
    "word": ({"classes": "imput", "logit_scale": 1.0}, RequestError, "the word 'input'"),
    "no file": ({"classes": "no.npy", "logit_scale": 1.0}, DataError, "cannot read no.npy"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_asked_for(case: str, tmp_path: Path) -> None:
    options, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        to_onnx(encoder(), tmp_path / "x.onnx", overrides=SMALL, **options)
    assert not list(tmp_path.iterdir())


def test_class_scores_are_no_embedding(tmp_path: Path) -> None:
    model = nn.Sequential(encoder(), nn.Softmax(-1)).eval()
    with pytest.raises(ExportError, match=r"\(Softmax\) is no image embedding"):
        to_onnx(
            model, tmp_path / "x.onnx", overrides=SMALL, classes="input", logit_scale=1.0,
            task="softmax",
        )  # fmt: skip


class Scored(nn.Module):
    """An image encoder that holds its scale and bias, as trained ones do."""

    def __init__(self, bias: float | None) -> None:
        super().__init__()
        self.net = encoder()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor([bias]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize("task", ["softmax", "sigmoid"])
def test_scale_bias_and_task_are_the_modules_own(task: str, tmp_path: Path) -> None:
    model = Scored(BIAS if task == "sigmoid" else None).eval()
    made = to_onnx(model, tmp_path / "x.onnx", overrides=SMALL, classes="input")
    assert made.manifest.task == task
    assert any("logit_scale" in note for note in made.notes)
    found = whycam.load(made.path, prompts=prompts(3)).classify(IMAGES)
    expected = whycam.load(zero_shot(task=task), prompts=prompts(3)).classify(IMAGES)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_onnx_file_is_an_image_encoder_too(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    torch.onnx.export(
        encoder(), (torch.zeros(2, 3, SIZE, SIZE),), path, dynamo=True, verbose=False,
        input_names=["class_embeddings"], dynamic_shapes=({0: torch.export.Dim("n")},),
    )  # fmt: skip
    made = to_onnx(
        path, tmp_path / "x.onnx", overrides=SMALL, classes="input", logit_scale=math.log(SCALE),
        task="softmax",
    )  # fmt: skip
    # Its own input has the contract's name already.
    assert made.manifest.names["class_embeddings"] == "whycam_class_embeddings"
    expected = whycam.load(zero_shot(), prompts=prompts(3)).classify(IMAGES)
    for engine in ENGINES:
        found = whycam.load(made.path, engine, prompts=prompts(3)).classify(IMAGES)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pooled_features_without_projection_have_the_same_layer_either_way(tmp_path: Path) -> None:
    model = network(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    made = [
        to_onnx(
            model, tmp_path / f"{i}.onnx", overrides=SMALL, classes=classes, logit_scale=1.0,
            task="softmax",
        ).manifest
        for i, classes in enumerate(("input", np.eye(3, 8, dtype=np.float32)))
    ]  # fmt: skip
    assert made[0].target_layer == made[1].target_layer == "3"
    assert "cam" not in made[0].methods


def test_int8_and_triton_ask_for_classes_inside_the_file(tmp_path: Path) -> None:
    from whycam.calibrate.dataset import Dataset
    from whycam.calibrate.int8 import calibrate_int8
    from whycam.export.triton import write_repository

    with pytest.raises(RequestError, match="--classes FILE"):
        write_repository(zero_shot(), tmp_path)
    with pytest.raises(RequestError, match=r"--classes FILE\.npz"):
        calibrate_int8(zero_shot(), Dataset(tmp_path, "folder", ()), tmp_path / "x.onnx")


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no npz": (lambda path: path.write_bytes(b"PK\x03\x04nothing"), "no file of prompts"),
    "no names": (lambda path: np.savez(path, embeddings=np.ones((2, 3))), "no file of prompts"),
    "objects": (
        lambda path: np.savez(path, names=np.array(["a", None]), embeddings=np.ones((2, 3))),
        "no file of prompts",
    ),
    "numbers as names": (
        lambda path: np.savez(path, names=np.arange(2), embeddings=np.ones((2, 3))),
        "names are text",
    ),
    "one name too few": (
        lambda path: np.savez(path, names=np.array(["a"]), embeddings=np.ones((2, 3))),
        "1 names for 2",
    ),
    "a name twice": (
        lambda path: np.savez(path, names=np.array(["a", "a"]), embeddings=np.ones((2, 3))),
        "'a' stands for several",
    ),
    "zeros": (
        lambda path: np.savez(
            path, names=np.array(["a", "b"]), embeddings=np.eye(2, 3) * [[1], [0]]
        ),
        "embedding 1 is zero",
    ),
    "integers": (
        lambda path: np.savez(path, names=np.array(["a"]), embeddings=np.ones((1, 3), int)),
        "float array",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_prompts_are_refused_with_what_is_wrong(case: str, tmp_path: Path) -> None:
    write, message = BAD[case]
    write(tmp_path / "x.npz")
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / "x.npz")


def test_prompts_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = Prompts(("a cat", "ein Füchslein 🦊"), prompts(2).embeddings)
    again = read_prompts(write_prompts(tmp_path / "x.npz", written))
    assert again.names == written.names
    np.testing.assert_array_equal(again.embeddings, written.embeddings)


def test_several_templates_are_averaged_after_normalising() -> None:
    from whycam.export.prompts import embed_prompts

    vectors = {"a cat": [3.0, 0.0], "the cat": [0.0, 5.0], "a dog": [1.0, 0.0], "the dog": [1, 0]}
    found = embed_prompts(
        lambda texts: np.array([vectors[text] for text in texts], np.float32),
        ["cat", "dog"],
        ["a {}", "the {}"],
    )
    half = math.sqrt(0.5)
    np.testing.assert_allclose(found.embeddings, [[half, half], [1, 0]], atol=1e-7)
    with pytest.raises(RequestError, match="place"):
        embed_prompts(lambda texts: texts, ["cat"], ["a photo"])


ENCODER_FILE = """
import numpy as np

def text():
    def encode(texts):
        return np.array([[len(t), *(t.count(c) for c in "abcdefgh"), 1] for t in texts], float)
    return encode
"""


def test_prompts_go_from_words_to_an_explanation_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from PIL import Image

    from whycam.cli import main

    (tmp_path / "texts.py").write_text(ENCODER_FILE)
    Image.fromarray(IMAGES[0]).save(tmp_path / "x.png")
    file = str(tmp_path / "p.npz")

    def run(*words: str) -> Any:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--json"])
        printed = json.loads(capsys.readouterr().out)
        return printed if ended.value.code == 0 else printed["error"]

    model = f"{tmp_path / 'texts.py'}:text"
    made = run("prompts", "a cat", "a bad egg", "--model", model, "-o", file)
    assert made["names"] == ["a cat", "a bad egg"]
    source = str(tmp_path / "x.png")
    found = run("explain", str(zero_shot()), source, "--prompts", file, "--target", "a cat")
    assert found["explanations"][0]["label"] == "a cat"
    assert "--prompts FILE.npz" in run("explain", str(zero_shot()), source)
    assert run("verify", str(zero_shot()), "--engine", "openvino")["ok"]


@pytest.mark.slow
def test_plan_takes_a_range_of_prompts(tmp_path: Path) -> None:
    from whycam.export import to_plan
    from whycam.runtime.engines.plan import Range

    pytest.importorskip("tensorrt_rtx")
    variants = ({}, None), ({"outputs": ["tft"]}, None), ({}, ["7.5"])
    for index, (options, compute) in enumerate(variants):
        built = to_plan(
            zero_shot(**options),
            tmp_path / f"{index}.plan",
            compute=compute,
            prompts=Range(2, 4, 64),
        )
        tensor = next(each for each in built.plan.inputs if each.name == "class_embeddings")
        assert (tensor.dtype, tensor.shape) == ("float32", (-1, LENGTH))
        assert built.plan.prompts == Range(2, 4, 64)


@pytest.mark.slow
def test_half_precision_keeps_the_classes_an_input(tmp_path: Path) -> None:
    from whycam.export import to_half

    half = to_half(zero_shot(), tmp_path / "half.onnx").path
    classes = prompts(4)
    expected = whycam.load(zero_shot(), prompts=classes).classify(IMAGES)
    found = whycam.load(half, prompts=classes).classify(IMAGES)
    np.testing.assert_allclose(found, expected, atol=2e-2)


@pytest.mark.slow
def test_clip_with_attention_pooling_is_explained_as_the_model_itself_scores(
    tmp_path: Path,
) -> None:
    open_clip = pytest.importorskip("open_clip")
    from whycam.export.prompts import embed_prompts

    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"layers": (1, 1, 1, 1), "width": 8, "image_size": 64},
        text_cfg={"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    ).eval()
    tokenizer = open_clip.get_tokenizer("RN50", context_length=16)
    names = ["a cat", "a dog", "a photo of a bird"]
    with torch.no_grad():
        classes = embed_prompts(lambda texts: model.encode_text(tokenizer(list(texts))), names)
    made = to_onnx(
        model,
        tmp_path / "clip.onnx",
        classes="input",
        overrides=whycam.export.Overrides(preprocess="zero-one", image_size=64),
    )
    explainer = whycam.load(made.path, prompts=classes)
    assert made.manifest.target_layer.startswith("layer4")
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    feeds = {"image": x, "target": np.array([[1], [2]], np.int64)}
    found = explainer.engine.run(feeds, RAW)
    twin, kept = model.double(), []
    layer = twin.visual.get_submodule(made.manifest.target_layer)
    layer.register_forward_hook(lambda _m, _i, out: kept.append(out))
    image, text, scale = twin(torch.from_numpy(x).double(), tokenizer(names))
    scores = scale * image @ text.T
    np.testing.assert_allclose(found["probabilities"], scores.softmax(-1).detach(), atol=1e-5)
    (true,) = torch.autograd.grad(scores[0, 1] + scores[1, 2], kept[-1])
    error = np.abs(found["gradients"][:, 0] - true.numpy()).max() / float(true.abs().max())
    assert error < 1e-4


def test_small_probabilities_keep_their_digits(tmp_path: Path) -> None:
    made = to_onnx(
        encoder(), tmp_path / "x.onnx", overrides=SMALL, classes="input", task="sigmoid",
        logit_scale=math.log(SCALE), logit_bias=-16.5,
    )  # fmt: skip
    classes = prompts(4)
    for engine in ENGINES:
        found = answers(made.path, classes, [[0]], RAW, engine=engine)
        a = torch.from_numpy(found["activations"]).double()
        expected = (logits(a, classes, "softmax") - 16.5).sigmoid().detach().numpy()
        assert expected.min() < 1e-8
        np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-4)


def test_classes_stay_an_input_at_every_image_size(tmp_path: Path) -> None:
    model = network(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, LENGTH))
    options = {"overrides": SMALL, "logit_scale": 3.0, "task": "softmax", "classes": "input"}
    made = to_onnx(model, tmp_path / "x.onnx", dynamic_size=(32, 64), **options)
    fixed = to_onnx(model, tmp_path / "fixed.onnx", **options)
    classes = prompts(3)
    for engine in ENGINES:
        found = answers(made.path, classes, [[1]], RAW, engine=engine)
        expected = answers(fixed.path, classes, [[1]], RAW)
        for name in RAW:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
        wide = whycam.load(made.path, engine, prompts=classes).explain(IMAGES[0])
        assert wide.map.shape == (40, 48)


def test_encoder_of_open_clip_without_classes_asks_for_them(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(ExportError, match=r"Write open_clip/RN50/TAG.*openai"):
        to_onnx("open_clip/RN50", tmp_path / "x.onnx", classes="input")
    with pytest.raises(RequestError, match="add --classes input"):
        to_onnx("open_clip/RN50/openai", tmp_path / "x.onnx")
    with pytest.raises(ExportError, match="no model 'RN51'"):
        to_onnx("open_clip/RN51", tmp_path / "x.onnx", classes="input")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_encoders_of_transformers_give_the_models_own_scores(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    from whycam.export.image_encoder import find_image_encoder, read_logit_parameters
    from whycam.runtime.cosine import cosine_logits, normalise

    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vision_config={**small, "num_hidden_layers": 1, "image_size": 32, "patch_size": 8},
        text_config={
            **small, "num_hidden_layers": 1, "vocab_size": 50, "max_position_embeddings": 8,
            "bos_token_id": 1, "eos_token_id": 2,
        },
    )  # fmt: skip
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        if kind == "Siglip":
            model.logit_bias.fill_(-5.0)
        x, ids = torch.randn(2, 3, 32, 32), torch.randint(3, 50, (3, 8))
        images = find_image_encoder(model, x)(x).numpy()
        texts = model.get_text_features(input_ids=ids).pooler_output.numpy()
        expected = model(pixel_values=x, input_ids=ids).logits_per_image.numpy()
    said = read_logit_parameters(model)
    assert said is not None
    bias = said.logit_bias or 0.0
    found = cosine_logits(images, normalise(texts), math.exp(said.logit_scale), bias)
    np.testing.assert_allclose(found, expected, atol=1e-5)
