"""Masks and evaluations of a training are computed where it runs, if an engine can."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
from PIL import Image

import whycam
from whycam.export import to_onnx
from whycam.runtime.engines import ort_gpu
from whycam.runtime.engines.nvidia import driver
from whycam.train import engine
from whycam.train.aft import train_aft
from whycam.train.engine import explain_cpu, open_explainer
from whycam.train.loop import Plan
from whycam.train.objective import Objective
from whycam.train.run import Machines


@pytest.mark.parametrize(
    ("device", "problem", "expected"),
    [
        ("cpu", None, ("onnxruntime", 0)),
        ("cuda:1", None, ("onnxruntime-cuda", 1)),
        ("cuda:1", "not built in", ("onnxruntime", 0)),
        ("mps", None, ("onnxruntime", 0)),
    ],
)
def test_the_engine_follows_the_device(monkeypatch, tmp_path, device, problem, expected):
    opened = []
    monkeypatch.setattr(ort_gpu, "problem", lambda *_: problem)
    monkeypatch.setattr(engine, "load", lambda _, name, gpu=0: opened.append((name, gpu)))
    open_explainer(tmp_path, torch.device(device))
    assert opened == [expected]
    assert explain_cpu(torch.device(device)) == (problem if device.startswith("cuda") else None)


@pytest.mark.gpu
@pytest.mark.skipif(driver().problem is not None, reason="no GPU that can be used here")
def test_a_training_on_a_gpu_evaluates_there_and_finds_the_masks_of_the_cpu(tmp_path):
    assert explain_cpu(torch.device("cuda:0")) is None
    rng = np.random.default_rng(0)
    for index in range(20):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"{index}.png")
    tuned = train_aft(
        f"{networks.__file__}:linear",
        tmp_path,
        tmp_path / "run",
        overrides=networks.SMALL,
        objective=Objective(terms={"aligned": 1.0}),
        plan=Plan(epochs=1, batch=5),
        machines=Machines(accelerator="cuda"),
        cache=str(tmp_path / "cache"),
    )
    assert tuned is not None
    assert "CUDA" in tuned.after.engine
    to_onnx(networks.linear(), tmp_path / "m.onnx", overrides=networks.SMALL, methods=["gradcam"])
    files = [tmp_path / "m.onnx", tmp_path / "run" / "before.onnx"]
    ours, theirs = whycam.load(files[0], "onnxruntime"), whycam.load(files[1], "onnxruntime-cuda")
    for index in range(5):
        one, other = (each.explain(tmp_path / f"{index}.png") for each in (ours, theirs))
        np.testing.assert_allclose(one.original_map, other.original_map, atol=1e-3)
