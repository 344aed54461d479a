"""How images are prepared: what users say, what models say of themselves, and nothing guessed."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from whycam.export import Overrides, to_onnx
from whycam.export.loading import LoadedModel, load_model
from whycam.export.metadata import from_huggingface, from_timm, read_metadata
from whycam.export.preprocessing import PRESETS, choose_preprocess
from whycam.export.resolve import resolve
from whycam.runtime.errors import ExportError, PreprocessError
from whycam.runtime.input_format import Letterbox, Preprocess
from whycam.train.classifier import train_classifier

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = {"image_mean": list(MEAN), "image_std": list(STD)}


def chosen(size: tuple[int, int] = (224, 224), channels: int = 3, **said: Any) -> Preprocess:
    return choose_preprocess(
        Overrides(**said), None, size, channels, "model.onnx", "whycam export model.onnx"
    )


# --- presets and options ---


@pytest.mark.parametrize(
    ("name", "pixel", "expected"),
    [
        # RGB pixel to the network's first channel, as each framework computes it.
        ("imagenet", (255, 0, 0), (1 - 0.485) / 0.229),
        ("tf", (255, 0, 0), 255 / 127.5 - 1),
        ("caffe", (0, 0, 200), 200 - 103.939),
        ("zero-one", (51, 0, 0), 51 / 255),
        ("raw", (51, 0, 0), 51.0),
    ],
)
def test_presets_feed_what_their_frameworks_do(
    name: str, pixel: tuple[int, int, int], expected: float
) -> None:
    spec = chosen(preprocess=name)
    value = pixel["RGB".index(spec.color[0])]
    assert (value / 255 - spec.mean[0]) / spec.std[0] == pytest.approx(expected)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_crop_as_imagenet_does_or_squash(name: str) -> None:
    spec, oblong = chosen(preprocess=name), chosen(size=(96, 128), preprocess=name)
    if name in ("imagenet", "caffe"):
        assert (spec.resize, oblong.resize) == ((256,), (146,))
    else:
        assert (spec.resize, oblong.resize) == ((224, 224), (96, 128))
    assert (oblong.size, oblong.interpolation) == ((96, 128), "bilinear")


def test_options_change_parts_of_a_preset() -> None:
    said = {"resize": 250, "interpolation": "bicubic", "mean": (0.1, 0.2, 0.3), "color": "BGR"}
    spec = chosen(preprocess="imagenet", **said)
    assert spec == Preprocess((224, 224), (250,), "bicubic", color="BGR", mean=(0.1, 0.2, 0.3))
    assert chosen(preprocess="imagenet", resize=0).resize == (224, 224)


def test_mean_and_std_alone_say_enough() -> None:
    spec = chosen(mean=(0.5,) * 3, std=(0.25,) * 3)
    assert (spec.resize, spec.mean, spec.std) == ((224, 224), (0.5,) * 3, (0.25,) * 3)
    for part in ({"mean": (0.5,) * 3}, {"std": (0.5,) * 3}, {"resize": 256}, {"color": "BGR"}):
        with pytest.raises(PreprocessError):
            chosen(**part)


def test_grey_input_gets_one_number_a_channel() -> None:
    spec = chosen(channels=1, preprocess="tf")
    assert (spec.color, spec.mean, spec.std) == ("L", (0.5,), (0.5,))
    spec = chosen(channels=1, preprocess="imagenet", mean=(0.4,), std=(0.2,))
    assert (spec.color, spec.resize, spec.mean, spec.std) == ("L", (256,), (0.4,), (0.2,))
    assert chosen(channels=1, preprocess="raw", color="L").mean == (0.0,)


def test_channels_that_are_no_colours_are_bands() -> None:
    spec = chosen(channels=13, preprocess="tf")
    assert (spec.color, spec.mean, spec.std) == ("bands", (0.5,) * 13, (0.5,) * 13)
    spec = chosen(channels=2, mean=(0.1, 0.2), std=(0.3, 0.4), value_range=(0, 10000))
    assert (spec.color, spec.mean, spec.value_range) == ("bands", (0.1, 0.2), (0, 10000))
    assert chosen(channels=3, preprocess="raw", color="bands").color == "bands"


@pytest.mark.parametrize(
    ("channels", "said", "message"),
    [
        (1, {"preprocess": "imagenet"}, "pass --mean and --std"),
        (1, {"preprocess": "caffe", "mean": (0.4,)}, "pass --mean and --std"),
        (1, {"preprocess": "tf", "color": "RGB"}, "pass --color L"),
        (3, {"preprocess": "tf", "color": "L"}, "pass --color RGB or BGR"),
        (3, {"preprocess": "tf", "mean": (0.5,)}, "unusable preprocessing: .*need 3 numbers"),
        (3, {"preprocess": "tf", "std": (0.5, 0.0, 0.5)}, "std must be positive"),
        (4, {"preprocess": "imagenet"}, "the network takes 4: pass --mean and --std"),
        (4, {"preprocess": "tf", "color": "RGB"}, "pass --color bands"),
        (4, {"preprocess": "tf", "mean": (0.5,) * 3, "std": (0.5,) * 3}, "for 3 channels.*takes 4"),
        (3, {"preprocess": "tf", "value_range": (5.0, 5.0)}, "the second must be the larger"),
        (3, {"preprocess": "pytorch"}, "no preprocessing 'pytorch'; choose from: imagenet, tf, ca"),
        (3, {"preprocess": "nowhere.json"}, "cannot read preprocessing from nowhere.json"),
    ],
)
def test_what_makes_no_sense_is_refused(channels: int, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        chosen(channels=channels, **said)


# --- files of the user's ---


def written(folder: Path, contents: object, name: str = "mine.json") -> str:
    (folder / name).write_text(json.dumps(contents))
    return str(folder / name)


def test_json_file_with_a_letterbox_has_no_resize(tmp_path: Path) -> None:
    stated = {"letterbox": {"value": 0}, "antialias": False, "mean": [0] * 3, "std": [1] * 3}
    file = written(tmp_path, stated)
    spec = chosen((64, 96), preprocess=str(tmp_path / file))
    assert (spec.resize, spec.size, spec.letterbox) == ((), (64, 96), Letterbox(value=0))


def test_json_file_holds_the_fields_of_a_manifest(tmp_path: Path) -> None:
    fields = {"color": "BGR", "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "interpolation": "bicubic"}
    spec = chosen(preprocess=written(tmp_path, fields))
    assert spec == Preprocess(
        (224, 224), (224, 224), "bicubic", color="BGR", mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)
    )
    whole = {"preprocess": fields | {"size": [112, 112], "resize": [128]}, "labels": ["a", "b"]}
    spec = chosen(preprocess=written(tmp_path, whole))
    assert (spec.size, spec.resize) == ((224, 224), (256,))  # in proportion to the network's input


@pytest.mark.parametrize(
    "contents",
    [[1, 2], {"mean": [1, 2]}, {"colour": "RGB"}, {"size": 5}, {"image_mean": 1}, {"color": "L"}],
)
def test_unusable_json_file_is_named(contents: object, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"mine\.json"):
        chosen(preprocess=written(tmp_path, contents))


# --- Hugging Face: the families' own rules, by published configurations ---


@dataclass
class Processor:
    config: dict[str, Any]
    size: tuple[int, int]
    resize: tuple[int, ...]
    interpolation: str = "bilinear"
    color: str = "RGB"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


PROCESSORS = {
    "microsoft/resnet-50, older": Processor(
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875}
        | {"resample": 3, "do_resize": True, "do_normalize": True}
        | IMAGENET,
        (224, 224),
        (256,),
        "bicubic",
    ),
    "facebook/convnext, newer": Processor(
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}
        | {"crop_pct": 0.875, "resample": 3}
        | IMAGENET,
        (224, 224),
        (256,),
        "bicubic",
    ),
    "facebook/convnext of 384, which squashes": Processor(
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}}
        | {"crop_pct": 0.875, "resample": 3}
        | IMAGENET,
        (384, 384),
        (384, 384),
        "bicubic",
    ),
    "google/vit": Processor(
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}
        | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True}
        | {"rescale_factor": 0.00392156862745098, "resample": 2},
        (224, 224),
        (224, 224),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    ),
    "facebook/deit, older": Processor(
        {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224}
        | {"do_center_crop": True, "resample": 3}
        | IMAGENET,
        (224, 224),
        (256, 256),
        "bicubic",
    ),
    "google/mobilenet_v2": Processor(
        {"image_processor_type": "MobileNetV2ImageProcessor", "size": {"shortest_edge": 256}}
        | {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
        | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        (224, 224),
        (256,),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    ),
    "facebook/levit": Processor(
        {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224}}
        | {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 3}
        | IMAGENET,
        (224, 224),
        (256,),
        "bicubic",
    ),
    "apple/mobilevit": Processor(
        {"feature_extractor_type": "MobileViTFeatureExtractor", "size": 288, "crop_size": 256}
        | {"do_center_crop": True, "do_flip_channel_order": True, "resample": 2},
        (256, 256),
        (288,),
        color="BGR",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    ),
    "google/efficientnet, which divides twice": Processor(
        {"image_processor_type": "EfficientNetImageProcessor", "include_top": True}
        | {"size": {"height": 224, "width": 224}, "resample": 0, "rescale_factor": 1 / 255}
        | {"image_mean": list(MEAN), "image_std": [0.4, 0.5, 0.6]},
        (224, 224),
        (224, 224),
        "nearest",
        std=(0.16, 0.25, 0.36),
    ),
    "a factor of 1/127.5 with an offset": Processor(
        {"size": {"height": 64, "width": 96}, "rescale_factor": 1 / 127.5, "rescale_offset": True}
        | {"do_normalize": False, "resample": 3},
        (64, 96),
        (64, 96),
        "bicubic",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    ),
    "pixels as they are": Processor(
        {"size": 64, "do_rescale": False, "do_normalize": False, "do_resize": False},
        (64, 64),
        (),
        mean=(0.0,) * 3,
        std=(1 / 255,) * 3,
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_image_processor_of_hugging_face_is_read(name: str, tmp_path: Path) -> None:
    expected = PROCESSORS[name]
    written(tmp_path, expected.config, "preprocessor_config.json")
    known = read_metadata({}, tmp_path / "model.onnx")
    assert known is not None
    assert known.preprocess is not None
    spec = known.preprocess
    assert (spec.size, spec.resize) == (expected.size, expected.resize)
    assert (spec.interpolation, spec.color) == (expected.interpolation, expected.color)
    np.testing.assert_allclose((spec.mean, spec.std), (expected.mean, expected.std))
    assert chosen(expected.size, preprocess=str(tmp_path / "preprocessor_config.json")) == spec


@pytest.mark.parametrize(
    "config",
    [
        IMAGENET,
        {"size": {"longest_edge": 9}} | IMAGENET,
        {"size": 224, "resample": 5} | IMAGENET,
        {"size": 224, "image_mean": [0.5] * 3},
        {"size": 224, "image_mean": "x", "image_std": 1},
    ],
)
def test_image_processor_without_sense_is_named(config: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match=r"config\.json does not hold usable preprocessing"):
        from_huggingface(config, "config.json")


# --- ONNX files and what lies beside them ---


def network_file(folder: Path, side: int | str = 32, channels: int = 3, **metadata: str) -> Path:
    """A classifier of four classes, node by node."""
    rng = np.random.default_rng(0)
    tensors = {
        "kernel": rng.standard_normal((8, channels, 3, 3)).astype(np.float32),
        "matrix": rng.standard_normal((8, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["convolved"]),
        helper.make_node("Relu", ["convolved"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", channels, side, side])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, folder / "my net.onnx")
    return folder / "my net.onnx"


def loaded(path: Path, labels: list[str] | None = None, **said: Any) -> LoadedModel:
    return load_model(str(path), "default", None, labels, None, Overrides(**said), 18)


def test_file_that_says_nothing_is_refused_with_one_complete_command(tmp_path: Path) -> None:
    path = network_file(tmp_path)
    with pytest.raises(
        PreprocessError, match=r"my net\.onnx does not state how its images are"
    ) as caught:
        loaded(path)
    message = str(caught.value)
    for name in PRESETS:
        assert name in message
    command = shlex.split(message.partition("For example: ")[2])
    target = str(path.with_suffix(".explained.onnx"))
    expected = ["whycam", "export", str(path), "-o", target, "--preprocess", "imagenet"]
    assert command == expected
    with pytest.raises(PreprocessError, match="--image-size 32x48 --preprocess imagenet"):
        loaded(network_file(tmp_path, side="side"), image_size=(32, 48))
    with pytest.raises(PreprocessError, match="--layout NCHW --preprocess zero-one"):
        loaded(network_file(tmp_path, channels=1), layout="NCHW")


YOLO = {"task": "classify", "names": "{0: 'ant', 1: 'bee', 2: 'cat', 3: 'dog'}"}


def test_metadata_of_ultralytics_is_read(tmp_path: Path) -> None:
    origin = loaded(network_file(tmp_path, **YOLO, imgsz="[32, 32]"))
    expected = Preprocess((32, 32), (32,), mean=(0.0,) * 3, std=(1.0,) * 3)
    assert origin.preprocess == expected
    assert origin.labels == ("ant", "bee", "cat", "dog")
    assert origin.notes == ("preprocessing and labels read from the file's Ultralytics metadata",)
    oblong = read_metadata(YOLO | {"imgsz": "[64, 96]"}, tmp_path / "x.onnx")
    assert oblong is not None
    assert oblong.preprocess is not None
    assert oblong.preprocess.resize == (64, 96)


def test_what_the_user_says_wins_over_what_the_file_says(tmp_path: Path) -> None:
    path = network_file(tmp_path, **YOLO, imgsz="[32, 32]")
    origin = loaded(path, ["w", "x", "y", "z"], preprocess="caffe", mean=(0.5,) * 3)
    assert (origin.preprocess.color, origin.preprocess.mean) == ("BGR", (0.5,) * 3)
    assert (origin.labels, origin.notes) == (("w", "x", "y", "z"), ())
    assert loaded(path, interpolation="bicubic").preprocess.interpolation == "bicubic"


@pytest.mark.parametrize(
    "metadata",
    [{"names": YOLO["names"], "stride": "32"}, YOLO | {"task": "segment", "imgsz": "[32, 32]"}],
)
def test_metadata_of_other_tasks_says_nothing_of_classifiers(
    metadata: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(PreprocessError):
        loaded(network_file(tmp_path, **metadata))


def test_damaged_metadata_is_named_unless_the_user_says_it(tmp_path: Path) -> None:
    path = network_file(tmp_path, task="classify", names="{0: ", imgsz="[32, 32]")
    with pytest.raises(ExportError, match=r"metadata .* cannot be read"):
        loaded(path)
    assert loaded(path, preprocess="tf").preprocess.mean == (0.5,) * 3
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ExportError, match=r"cannot read .*preprocessor_config\.json"):
        loaded(network_file(tmp_path))


def test_files_of_hugging_face_beside_it_are_read(tmp_path: Path) -> None:
    processor = PROCESSORS["microsoft/resnet-50, older"].config
    written(tmp_path, processor, "preprocessor_config.json")
    written(tmp_path, {"id2label": {"2": "c", "0": "a", "1": "b", "3": "d"}}, "config.json")
    origin = loaded(network_file(tmp_path, side="side"))
    assert (origin.preprocess.size, origin.preprocess.resize) == ((224, 224), (256,))
    assert origin.labels == ("a", "b", "c", "d")
    assert "preprocessor_config.json" in origin.notes[0]
    # The file's own size counts where it has one; the resize keeps its proportion.
    spec = loaded(network_file(tmp_path, side=112)).preprocess
    assert (spec.size, spec.resize) == ((112, 112), (128,))


def test_labels_beside_it_are_read_where_nothing_says_how_images_are_prepared(
    tmp_path: Path,
) -> None:
    written(tmp_path, {"id2label": {"0": "a", "1": "b", "2": "c", "3": "d"}}, "config.json")
    path = network_file(tmp_path)
    with pytest.raises(PreprocessError):
        loaded(path)
    origin = loaded(path, preprocess="tf")
    assert origin.labels == ("a", "b", "c", "d")
    assert origin.notes == (f"labels read from {tmp_path / 'config.json'}",)


def test_configuration_of_timm_beside_it_is_read(tmp_path: Path) -> None:
    own = {"input_size": [3, 32, 32], "crop_pct": 0.8, "interpolation": "bicubic"}
    own |= {"mean": [0.5] * 3, "std": [0.25] * 3, "crop_mode": "center"}
    written(tmp_path, {"pretrained_cfg": own, "label_names": list("abcd")}, "config.json")
    origin = loaded(network_file(tmp_path))
    assert origin.preprocess == Preprocess(
        (32, 32), (40,), "bicubic", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    assert origin.labels == tuple("abcd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": [4, 32, 32]}, "3 means for 4 channels"),
        ({"crop_mode": "border"}, "crop mode 'border'"),
        ({"interpolation": "random"}, "interpolation 'random'"),
        ({"crop_pct": 0.0}, "unusable configuration"),
        ({"mean": None}, "unusable configuration"),
    ],
)
def test_configuration_of_timm_that_cannot_be_followed_is_refused(
    change: dict[str, Any], message: str
) -> None:
    own = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
    with pytest.raises(ExportError, match=message):
        from_timm(own | change, "config.json")


# As PaddleClas writes it, and as PaddleX does.
PADDLE = {
    "inference.yml": """\
PreProcess:
  transform_ops:
  - ResizeImage:
      resize_short: 36
  - CropImage:
      size: 32
  - NormalizeImage:
      channel_num: 3
      mean:
      - 0.485
      - 0.456
      - 0.406
      order: ''
      scale: 0.00392156862745098
      std:
      - 0.229
      - 0.224
      - 0.225
  - ToCHWImage: null
PostProcess:
  Topk:
    topk: 5
    label_list:
    - ant
    - bee
    - 'cat, house cat'
    - dog
""",
    "infer_cfg.yml": """\
PreProcess:
  transform_ops:
  - type: ResizeImage
    size: [48, 32]
    interpolation: bicubic
  - type: NormalizeImage
    scale: 1.0/255.0
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]
""",
}


@pytest.mark.parametrize("name", PADDLE)
def test_configuration_of_paddle_beside_it_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(PADDLE[name])
    known = read_metadata({}, tmp_path / "model.onnx")
    assert known is not None
    assert known.preprocess is not None
    spec = known.preprocess
    np.testing.assert_allclose((spec.mean, spec.std), (MEAN, STD))
    if name == "inference.yml":
        assert (spec.size, spec.resize, spec.interpolation) == ((32, 32), (36,), "bilinear")
        assert known.labels == ("ant", "bee", "cat, house cat", "dog")
    else:  # width before height
        assert (spec.size, spec.resize, spec.interpolation) == ((32, 48), (32, 48), "bicubic")
        assert known.labels == ()


@pytest.mark.parametrize(
    ("before", "after"),
    [("CropImage", "PadImage"), ("size: 32", "length: 32"), ("mean:", "- mean:"), ("Pre", "Post")],
)
def test_configuration_of_paddle_that_cannot_be_followed_is_named(
    before: str, after: str, tmp_path: Path
) -> None:
    (tmp_path / "inference.yml").write_text(PADDLE["inference.yml"].replace(before, after, 1))
    with pytest.raises(ExportError, match=r"inference\.yml does not hold usable"):
        read_metadata({}, tmp_path / "model.onnx")


# --- PyTorch models of the user's own ---


def factory_file(folder: Path, body: str) -> str:
    path = folder / "whycam_test_mine.py"
    tests = str(Path(__file__).parent)
    path.write_text(f"import sys\nsys.path.insert(0, {tests!r})\nimport networks\n{body}")
    return f"{path}:make"


def test_factory_that_says_nothing_is_refused_with_one_complete_command(tmp_path: Path) -> None:
    spec = factory_file(tmp_path, "def make():\n    return networks.linear()\n")
    with pytest.raises(PreprocessError) as caught:
        resolve(spec)
    command = f"whycam export {spec} -o whycam_test_mine.onnx --preprocess imagenet"
    assert str(caught.value).endswith(command)
    with pytest.raises(PreprocessError, match="--image-size 16x16 --color L --preprocess zero-one"):
        resolve(spec, overrides=Overrides(image_size=16, color="L"))


def test_training_a_factory_that_says_nothing_is_refused_with_its_own_command(
    tmp_path: Path,
) -> None:
    spec = factory_file(tmp_path, "def make():\n    return networks.linear()\n")
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (32, 32)).save(tmp_path / "data" / name / f"{index}.png")
    with pytest.raises(PreprocessError) as caught:
        train_classifier(spec, tmp_path / "data", tmp_path / "run")
    said = str(caught.value)
    assert said.endswith(f"whycam train classifier {spec} ... --preprocess imagenet")
    assert "--mean" not in said  # which no training takes


def test_module_that_says_nothing_is_refused_with_what_to_write_in_python() -> None:
    with pytest.raises(PreprocessError, match=r'overrides=Overrides\(preprocess="imagenet"\)'):
        resolve(networks.linear())


def test_size_that_nobody_says_is_noted() -> None:
    source = resolve(networks.linear(), overrides=Overrides(preprocess="tf"))
    assert source.preprocess.size == (224, 224)
    assert "224 x 224 was assumed" in source.notes[0]
    assert not resolve(networks.linear(), overrides=networks.SMALL).notes


def test_file_of_the_users_says_the_size_too(tmp_path: Path) -> None:
    for contents in (
        {"size": [48, 48], "resize": [54], "mean": [0.5] * 3},
        {"size": {"height": 48, "width": 48}} | IMAGENET,
    ):
        said = Overrides(preprocess=written(tmp_path, contents))
        source = resolve(networks.linear(), overrides=said)
        assert source.preprocess.size == (48, 48)
        assert source.notes == ()


def test_models_that_bring_their_configuration_are_believed() -> None:
    model = networks.linear()
    model.pretrained_cfg = {"input_size": (3, 32, 32), "crop_pct": 0.5, "mean": MEAN, "std": STD}
    assert resolve(model).preprocess == Preprocess((32, 32), (64,))
    assert resolve(model, overrides=Overrides(preprocess="tf")).preprocess.mean == (0.5,) * 3

    from torchvision.models import ResNet50_Weights

    model = networks.linear()
    model.transforms = ResNet50_Weights.IMAGENET1K_V2.transforms()
    assert resolve(model).preprocess == Preprocess((224, 224), (232,))


def grey() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()


@pytest.mark.slow
def test_grey_network_is_exported_with_color_l(tmp_path: Path) -> None:
    said = Overrides(preprocess="zero-one", color="L", image_size=16)
    made = to_onnx(grey(), tmp_path / "grey.onnx", overrides=said)
    assert made.manifest.image_shape == (1, 16, 16)
    assert resolve(grey(), overrides=said).preprocess.channels == 1
