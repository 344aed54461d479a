"""Which way imports go, read from the code without running it: see docs/layout.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each may import the packages below it, and itself.
BELOW = {
    "": {"distributed", "runtime"},
    "distributed": {"runtime"},
    "cli": {"train", "calibrate", "export", "runtime"},
    "train": {"calibrate", "export", "runtime"},
    "calibrate": {"runtime"},
    "export": {"runtime"},
    "runtime": set(),
}
NOT_IN_RUNTIME = {
    "torch", "torchvision", "timm", "lightning_fabric", "onnx", "onnx_ir", "typer", "rich"
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One module that imports another, both without the leading ``whycam.``.

    Attributes:
        kind: ``run``; or ``types``, under TYPE_CHECKING.
        outside: whether ``imported`` is another distribution's.
    """

    importer: str
    imported: str
    kind: str
    outside: bool

    def __str__(self) -> str:
        return f"{self.importer or 'whycam'} -> {self.imported or 'whycam'}"


def modules_of(root: Path) -> dict[str, Path]:
    """The package's modules, dotted, and their files; the root is the empty name."""
    found = {"": root / "__init__.py"}
    for package in BELOW:
        files = [root / f"{package}.py", *(root / package).rglob("*.py")] if package else []
        for path in files:
            if path.is_file():
                parts = path.relative_to(root).with_suffix("").parts
                found[".".join(part for part in parts if part != "__init__")] = path
    return found


def import_statements(
    tree: ast.AST, kind: str = "run"
) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """All of them, those inside functions and classes as well."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, kind
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from import_statements(ast.Module([child], []), "types")
            yield from import_statements(ast.Module(node.orelse, []), kind)
        else:
            yield from import_statements(node, kind)


def imports(root: Path) -> list[Import]:
    modules = modules_of(root)
    found = []
    for name, path in modules.items():
        package = name.split(".") if name else []
        if path.name != "__init__.py":
            package = package[:-1]
        for node, kind in import_statements(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found += [Import(name, each.name, kind, True) for each in node.names]
                continue
            if node.level == 0:
                found.append(Import(name, node.module or "", kind, True))
                continue
            climbed = package[: len(package) - node.level + 1]
            source = ".".join([*climbed, *([node.module] if node.module else [])])
            for each in node.names:
                inner = f"{source}.{each.name}" if source else each.name
                found.append(Import(name, inner if inner in modules else source, kind, False))
    return [each for each in dict.fromkeys(found) if each.importer != each.imported]


def circle(found: list[Import]) -> list[str]:
    """The modules of one circle, in order; empty where there is none."""
    graph: dict[str, set[str]] = {}
    for each in found:
        if not each.outside:
            graph.setdefault(each.importer, set()).add(each.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upward(found: list[Import]) -> list[str]:
    """Imports of a package that does not lie below."""
    wrong = []
    for each in found:
        own, other = (name.partition(".")[0] for name in (each.importer, each.imported))
        if not each.outside and own != other and other not in BELOW[own]:
            wrong.append(str(each))
    return wrong


def heavy_in_runtime(found: list[Import]) -> list[str]:
    return [
        str(each)
        for each in found
        if each.importer.startswith("runtime")
        and each.outside
        and each.imported.partition(".")[0] in NOT_IN_RUNTIME
    ]


@pytest.fixture(scope="module")
def all_imports() -> list[Import]:
    found = imports(ROOT)
    assert len(found) > 500
    return found


@pytest.fixture
def run_imports(all_imports) -> list[Import]:
    return [each for each in all_imports if each.kind == "run"]


def test_no_modules_import_each_other_in_a_circle(run_imports):
    assert circle(run_imports) == []


def test_no_circle_is_hidden_under_type_checking(all_imports):
    assert circle(all_imports) == []


def test_no_package_imports_one_above_it_nor_the_root(all_imports):
    assert upward(all_imports) == []


def test_the_runtime_imports_no_training_no_graph_library_and_no_terminal(run_imports):
    assert heavy_in_runtime(run_imports) == []


def test_the_package_imports_itself_by_relative_names_alone(all_imports):
    absolute = [e for e in all_imports if e.outside and e.imported.split(".")[0] == "whycam"]
    assert list(map(str, absolute)) == []


@pytest.fixture
def seeded(tmp_path):
    """A package of two modules, the texts of which a test gives."""

    def write(**texts: str) -> list[Import]:
        (tmp_path / "__init__.py").write_text("")
        for name, text in texts.items():
            path = tmp_path / (name.replace("__", "/") + ".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return imports(tmp_path)

    return write


@pytest.mark.parametrize(
    "back",
    [
        "from . import a",
        "from .a import thing",
        "def late():\n    from .a import thing\n",
        "class Late:\n    def late(self):\n        from ..runtime import a\n",
        "try:\n    from .a import thing\nexcept ImportError:\n    pass\n",
    ],
)
def test_a_circle_is_found_wherever_the_import_stands(seeded, back):
    found = seeded(runtime__a="from .b import thing", runtime__b=back)
    assert set(circle(found)) == {"runtime.a", "runtime.b"}


def test_imports_for_types_alone_are_told_apart(seeded):
    back = "if TYPE_CHECKING:\n    from .a import thing\nelse:\n    from .c import thing\n"
    found = seeded(runtime__a="from .b import thing", runtime__b=back, runtime__c="")
    kinds = {each.imported: each.kind for each in found if each.importer == "runtime.b"}
    assert kinds == {"runtime.a": "types", "runtime.c": "run"}
    assert circle(found)
    assert not circle([each for each in found if each.kind == "run"])


@pytest.mark.parametrize(
    ("importer", "text", "wrong"),
    [
        ("runtime__a", "from ..export.b import thing", "runtime.a -> export.b"),
        ("runtime__a", "def late():\n    from .. import __version__", "runtime.a -> whycam"),
        ("calibrate__a", "from ..export import b", "calibrate.a -> export.b"),
        ("export__a", "from ..cli import c", "export.a -> cli.c"),
        ("train__a", "from ..calibrate.d import thing", None),
        ("cli__a", "from ..export.b import thing", None),
    ],
)
def test_an_import_from_above_is_found(seeded, importer, text, wrong):
    others = {"export__b": "", "cli__c": "", "calibrate__d": ""}
    assert upward(seeded(**others, **{importer: text})) == ([wrong] if wrong else [])


@pytest.mark.parametrize("text", ["import torch.nn", "def late():\n    from onnx import helper"])
def test_a_heavy_library_in_the_runtime_is_found(seeded, text):
    assert len(heavy_in_runtime(seeded(runtime__a=text, export__a=text))) == 1
