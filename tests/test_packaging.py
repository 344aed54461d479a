"""Source archive and wheel: what they hold, and what they say of themselves."""

from __future__ import annotations

import ast
import email
import email.message
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import whycam

ROOT = Path(__file__).parent.parent
PACKAGES = ("calibrate", "cli", "export", "runtime", "train")


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("only a git checkout knows which files are its own")
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def build(source: Path, kind: str, into: Path) -> Path:
    """What pip does with a source folder, without a network: its setuptools builds it."""
    hook = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(into)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", hook], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "deprecat" not in said.lower(), said
    assert "absent from the `packages`" not in said, said
    return into / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files under version control, without what work leaves beside them."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def archive(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as opened:
        name = next(name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_string(opened.read(name).decode())


def inside(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def of_the_package() -> dict[str, bytes]:
    """The tracked files that an installation needs, by their names in a wheel."""
    own = [name for name in tracked() if name.startswith(tuple(f"{p}/" for p in PACKAGES))]
    own += ["__init__.py", "__main__.py", "distributed.py", "py.typed"]
    return {f"whycam/{name}": (ROOT / name).read_bytes() for name in own}


def test_the_wheel_holds_every_file_of_every_package_and_its_licence_only(wheel):
    found = inside(wheel)
    about = {name for name in found if ".dist-info/" in name}
    assert {name: found[name] for name in found.keys() - about} == of_the_package()
    assert f"whycam-{whycam.__version__}.dist-info/licenses/LICENSE" in about


def test_every_folder_with_code_is_a_package():
    named = {str(Path(name).parent) for name in tracked() if name.endswith(".py")}
    own = {name for name in named if name.startswith(PACKAGES)}
    assert {"runtime/serve", "train"} <= own
    assert [name for name in own if not (ROOT / name / "__init__.py").is_file()] == []


def test_a_package_that_pyproject_does_not_list_is_noticed(checkout, tmp_path):
    """The comparison with the files on disk is worth something: setuptools says nothing."""
    shutil.copytree(checkout, tmp_path / "copy", ignore=shutil.ignore_patterns("build"))
    new = tmp_path / "copy" / "runtime" / "unlisted"
    new.mkdir()
    (new / "__init__.py").write_text("")
    made = build(tmp_path / "copy", "wheel", tmp_path)
    assert "whycam/runtime/unlisted/__init__.py" not in inside(made)


def test_the_archive_holds_what_the_wheel_is_built_from_and_nothing_else(archive):
    with tarfile.open(archive) as opened:
        files = {member.name.partition("/")[2] for member in opened if member.isfile()}
    made = {"PKG-INFO", "setup.cfg"} | {
        name for name in files if name.startswith("whycam.egg-info")
    }
    sources = {name.removeprefix("whycam/") for name in of_the_package()}
    assert files - made == sources | {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}


def test_the_wheel_from_the_archive_is_the_wheel_from_the_checkout(archive, wheel, tmp_path):
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    again = inside(build(source, "wheel", tmp_path))
    first = inside(wheel)
    record = f"whycam-{whycam.__version__}.dist-info/RECORD"
    assert again.keys() == first.keys()
    assert [name for name in first if name != record and again[name] != first[name]] == []


def test_the_metadata_name_version_licence_and_python(metadata):
    assert metadata["Name"] == "whycam"
    assert metadata["Version"] == whycam.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"


def test_every_extra_that_a_text_names_exists(metadata):
    extras = set(metadata.get_all("Provides-Extra"))
    texts = [ROOT / name for name in tracked() if name.endswith((".py", ".md"))]
    named = {
        extra
        for text in texts
        for group in re.findall(r"""(?:whycam|"\.|'\.)\[([a-z,-]+)\]""", text.read_text("utf-8"))
        for extra in group.split(",")
    }
    assert {"cpu", "openvino", "train", "export"} <= named
    assert named <= extras


def test_every_extra_that_an_error_offers_exists(metadata):
    calls = [
        node
        for name in tracked()
        if name.startswith(PACKAGES) and name.endswith(".py")
        for node in ast.walk(ast.parse((ROOT / name).read_text("utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MissingExtraError"
    ]
    offered = {call.args[1].value for call in calls if isinstance(call.args[1], ast.Constant)}
    assert {"plot", "ray", "serve", "calibrate"} <= offered
    assert offered <= set(metadata.get_all("Provides-Extra"))


def test_the_base_and_the_engines_need_no_torch(metadata):
    needed = metadata.get_all("Requires-Dist")
    with_torch = {
        line.split("extra ==")[1].strip(" '\"")
        for line in needed
        if re.match(r"torch(vision)?\b|whycam\[.*(export|train|demo)", line)
    }
    assert with_torch == {"export", "transformers", "train", "demo", "dev", "zero-shot"}


def test_the_long_description_has_no_link_that_only_a_checkout_can_follow(metadata):
    """A package index shows this text alone: files of the repository are not beside it."""
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    assert text.startswith("# whycam")
    assert re.findall(r"\]\((?!https?://)[^)]*\)", text) == []


def test_the_long_description_shows_commands_that_the_readme_has(metadata):
    blocks = re.findall(r"```sh\n(.*?)```", metadata.get_payload(), re.DOTALL)
    shown = [line for block in blocks for line in block.splitlines()]
    ours = [line for line in shown if line.startswith("whycam ")]
    assert ours
    assert [line for line in ours if line not in (ROOT / "README.md").read_text("utf-8")] == []


def test_the_version_is_written_in_one_place():
    """Besides the changelog, and pages that show what a command printed on its day."""
    number = re.compile(rf"(?<![\d.]){re.escape(whycam.__version__)}(?![\d.])")
    own = [name for name in tracked() if not name.startswith("docs/") and name != "CHANGELOG.md"]
    text = [name for name in own if Path(name).suffix not in (".jpg", ".png")]
    stating = [name for name in text if number.search((ROOT / name).read_text("utf-8"))]
    assert stating == ["pyproject.toml"]


def test_the_changelog_begins_with_this_version_or_what_comes_after_it():
    first = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert first is not None
    assert first[1] == "Unreleased" or first[1].startswith(whycam.__version__)
