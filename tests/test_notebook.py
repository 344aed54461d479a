"""The notebook in examples/: its cells run in order, and what they show is a picture."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_file import write_tiny

import whycam

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def run(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as notebooks do, and return the value of an expression on its last line."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


def test_cells_run_in_order_and_show_pictures(manifest_of, tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    model = tmp_path / ".demo" / "lite0.onnx"
    model.parent.mkdir()
    manifest = manifest_of(methods=("gradcam", "layercam"))
    write_tiny(model, manifest, rng.normal(size=(5, 3)), rng.normal(size=(3, 5)))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = [run("".join(cell["source"]), names) for cell in cells("code")]
    explanations = [one for one in shown if isinstance(one, whycam.Explanation)]
    assert len(explanations) == 2
    assert all("data:image/jpeg;base64," in one._repr_html_() for one in explanations)
    assert sum(hasattr(one, "savefig") for one in shown) == 2
    assert sorted(path.name for path in (tmp_path / "notebook_output").iterdir()) == [
        "figure.png",
        "map.npy",
        "why.png",
    ]


def test_stored_outputs_are_those_of_the_code_and_small():
    outputs = [cell["outputs"] for cell in cells("code")]
    assert [bool(each) for each in outputs].count(False) <= 1  # the first cell names files
    text = json.dumps(outputs)
    assert "tiger cat" in text
    assert '"error"' not in text
    assert NOTEBOOK.stat().st_size < 400_000
    assert "/tmp/" not in text
    assert "/home/" not in text
