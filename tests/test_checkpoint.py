"""Weight files as training scripts leave them: prefixes, wrappers, several sets of weights."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import networks
import pytest
import torch
from networks import SMALL
from torch import nn

from whycam.export.checkpoint import load_weights
from whycam.export.resolve import resolve
from whycam.runtime.errors import ExportError

FACTORY = f"{networks.__file__}:linear"
State = dict[str, torch.Tensor]


def weights(value: float = 0.5) -> State:
    """A state dict of the small network, told apart by the value in all its tensors."""
    return {
        name: torch.full_like(tensor, value)
        for name, tensor in networks.linear().state_dict().items()
    }


def prefixed(prefix: str, state: State | None = None) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in (state or weights()).items()}


def saved(contents: object, folder: Path, name: str = "weights.pth") -> Path:
    torch.save(contents, folder / name)
    return folder / name


def value_of(model: nn.Module) -> float:
    """What ``weights`` filled every tensor with."""
    values = torch.cat([tensor.ravel() for tensor in model.state_dict().values()])
    assert values.unique().numel() == 1
    return values[0].item()


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "model.",
        "_orig_mod.",
        "module.model.",
        "model.module.",
        "_orig_mod.module.",
        "module._orig_mod.model.",
        "module.module.module.",
        "backbone.",
        "net.encoder.",
        "model.backbone._orig_mod.",
    ],
)
def test_prefixes_of_wrappers_are_taken_off(prefix: str, tmp_path: Path) -> None:
    model = networks.linear()
    assert load_weights(model, saved(prefixed(prefix), tmp_path)) == ()
    assert value_of(model) == 0.5


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = networks.linear()


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_prefix_that_is_the_models_own_stays(prefix: str, tmp_path: Path) -> None:
    model = Wrapper()
    load_weights(model, saved(prefixed(f"{prefix}model."), tmp_path))
    assert value_of(model) == 0.5


def test_parts_that_were_wrapped_by_themselves_fit(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.features, model.classifier = networks.linear(), nn.Linear(7, 7)
    state = {name: torch.full_like(tensor, 0.25) for name, tensor in model.state_dict().items()}
    # As torchvision's reference training of VGG once wrote them, and torch.compile of a part.
    for part in ("features.module.", "features._orig_mod.", "features._orig_mod.module."):
        renamed = {name.replace("features.", part): tensor for name, tensor in state.items()}
        load_weights(model, saved(prefixed("module.", renamed), tmp_path))
        assert value_of(model) == 0.25


def test_averaged_model_of_torch_fits(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(networks.linear())
    averaged.load_state_dict(prefixed("module.") | {"n_averaged": torch.tensor(3)})
    model = networks.linear()
    load_weights(model, saved(averaged.state_dict(), tmp_path))
    assert value_of(model) == 0.5


@pytest.mark.parametrize(
    "places",
    [
        ("state_dict",),
        ("model_state_dict",),
        ("model",),
        ("ema",),
        ("model_ema", "state_dict"),
        ("state_dict", "model"),
        ("model", "state_dict", "model_state_dict"),
    ],
)
def test_wrappers_nest_in_any_order(places: tuple[str, ...], tmp_path: Path) -> None:
    contents: object = prefixed("module.")
    for place in reversed(places):
        contents = {"epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}, place: contents}
    model = networks.linear()
    assert load_weights(model, saved(contents, tmp_path)) == ()
    assert value_of(model) == 0.5


BOTH = {
    "flat": {"state_dict_ema": weights(2.0), "state_dict": weights(1.0)},
    "averaged first": {"ema": weights(2.0), "model": weights(1.0)},
    "averaged nested deeper": {"ema": {"state_dict": weights(2.0)}, "model": weights(1.0)},
    "both nested": {
        "model_ema": {"state_dict": weights(2.0)},
        "model": {"state_dict": prefixed("_orig_mod.", weights(1.0))},
    },
}


@pytest.mark.parametrize("kind", BOTH)
def test_plain_weights_are_taken_before_averaged_ones_and_that_is_said(
    kind: str, tmp_path: Path
) -> None:
    file = saved(BOTH[kind], tmp_path)
    source = resolve(FACTORY, str(file), overrides=SMALL)
    assert value_of(source.model) == 1.0
    (note,) = source.notes
    assert "weights.pth holds several sets of weights" in note
    assert "ema" in note.partition("was taken, not")[2]
    assert "--weights-key" in note


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("flat", "state_dict_ema"),
        ("averaged first", "ema"),
        ("averaged nested deeper", "ema.state_dict"),
        ("averaged nested deeper", "state_dict"),
        ("both nested", "model_ema.state_dict"),
    ],
)
def test_key_chooses_among_several_sets_of_weights(kind: str, key: str, tmp_path: Path) -> None:
    file = saved(BOTH[kind], tmp_path)
    source = resolve(FACTORY, str(file), overrides=SMALL, weights_key=key)
    assert value_of(source.model) == 2.0
    assert source.notes == ()


@pytest.mark.parametrize(
    ("kind", "key", "message"),
    [
        ("flat", "state_dict_best", "no weights under 'state_dict_best'; there are: .*_ema'"),
        ("both nested", "state_dict", "several weights under 'state_dict'; there are: 'model.stat"),
    ],
)
def test_key_that_fits_none_or_several_is_refused_with_those_there_are(
    kind: str, key: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        load_weights(networks.linear(), saved(BOTH[kind], tmp_path), key)


def test_key_without_a_weight_file_is_refused() -> None:
    with pytest.raises(ExportError, match="pass --weights FILE"):
        resolve(FACTORY, overrides=SMALL, weights_key="ema")


def test_weights_in_an_unusual_place_are_named_and_can_be_chosen(tmp_path: Path) -> None:
    file = saved(
        {"student": weights(1.0), "teacher": prefixed("backbone.", weights(2.0))}, tmp_path
    )
    with pytest.raises(ExportError, match="--weights-key chooses one of 'student', 'teacher'"):
        load_weights(networks.linear(), file)
    model = networks.linear()
    load_weights(model, file, "teacher")
    assert value_of(model) == 2.0


def test_safetensors_with_prefixes_fit(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(prefixed("module._orig_mod."), tmp_path / "weights.safetensors")
    model = networks.linear()
    load_weights(model, tmp_path / "weights.safetensors")
    assert value_of(model) == 0.5


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = prefixed("module.")
    state["module.extra.weight"] = state.pop("module.0.bias")
    with pytest.raises(ExportError, match=r"0.bias missing, extra.weight unknown"):
        load_weights(networks.linear(), saved(state, tmp_path))


def test_another_number_of_classes_is_met_with_num_classes(tmp_path: Path) -> None:
    name = list(weights())[-2]  # the linear layer's matrix
    state = weights() | {name: torch.zeros(4, 8), name.replace("weight", "bias"): torch.zeros(4)}
    file = saved({"state_dict": prefixed("module.", state)}, tmp_path)
    with pytest.raises(ExportError, match=r"\[4, 8\] in the file .*--num-classes 4"):
        resolve(FACTORY, str(file), overrides=SMALL)
    loaded = resolve(FACTORY, str(file), num_classes=4, overrides=SMALL).model
    assert loaded(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


# --- models in wrappers and other precisions ---

WRAPPED = {
    "compiled": torch.compile,
    "data parallel": nn.DataParallel,
    "nested": lambda model: nn.DataParallel(torch.compile(nn.DataParallel(model))),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_model_is_the_network_itself(kind: str) -> None:
    model = networks.linear()
    source = resolve(WRAPPED[kind](model).train(), overrides=SMALL)
    assert type(source.model) is nn.Sequential
    assert not source.model.training
    assert source.notes == ()
    assert list(source.model.state_dict()) == list(model.state_dict())


def test_wrapped_part_of_a_model_is_the_part_itself() -> None:
    model = networks.linear()
    model[0], model[2] = torch.compile(model[0]), nn.DataParallel(model[2])
    source = resolve(model, overrides=SMALL)
    assert list(source.model.state_dict()) == list(networks.linear().state_dict())
    assert isinstance(model[2], nn.DataParallel)  # the caller's own stays as it is


PRECISIONS = """
import sys
sys.path.insert(0, {tests!r})
import networks, torch


def half():
    return torch.compile(networks.linear().half()).train()


def bfloat16():
    return torch.nn.DataParallel(networks.linear().bfloat16())


def float64():
    return networks.linear().double()
"""


@pytest.mark.parametrize(
    ("factory", "dtype"), [("half", "float16"), ("bfloat16", "bfloat16"), ("float64", "float64")]
)
def test_factory_of_another_precision_is_made_float32_and_that_is_said(
    factory: str, dtype: str, tmp_path: Path
) -> None:
    file = tmp_path / "whycam_test_precisions.py"
    file.write_text(PRECISIONS.format(tests=str(Path(__file__).parent)))
    source = resolve(f"{file}:{factory}", overrides=SMALL)
    assert {tensor.dtype for tensor in source.model.state_dict().values()} == {torch.float32}
    assert source.notes == (f"the model's weights are {dtype}; it was exported in float32",)
    for name, tensor in networks.linear().state_dict().items():
        torch.testing.assert_close(source.model.state_dict()[name], tensor, atol=1e-2, rtol=1e-2)


def test_a_pickled_model_is_refused_with_what_to_do_and_without_torchs_own_words(tmp_path):
    path = saved(nn.Linear(2, 2), tmp_path)
    with pytest.raises(ExportError) as caught:
        load_weights(networks.linear(), path)
    said = str(caught.value)
    assert said.startswith(f"{path} holds a pickled torch.nn.modules.linear.Linear, and reading it")
    assert said.endswith("torch.save(model.state_dict(), 'weights.pth')")
    assert "x1b" not in said
    assert "weights_only" not in said


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (URLError(ConnectionRefusedError(111, "Connection refused")), "Connection refused"),
        (RuntimeError("cannot\x1b[1m reach the hub.\nAsk torch. Try."), "cannot reach the hub"),
    ],
)
def test_a_download_that_fails_is_one_sentence(monkeypatch, error, reason):
    def fail(*_: object, **__: object) -> None:
        if isinstance(error, URLError):
            raise error from error.reason
        raise error

    monkeypatch.setattr("torchvision.models.get_model", fail)
    with pytest.raises(ExportError) as caught:
        resolve("torchvision/resnet18")
    assert str(caught.value) == (
        f"cannot download the pretrained weights of torchvision/resnet18 ({reason}): pass "
        "--weights FILE, or --weights none for random ones"
    )
