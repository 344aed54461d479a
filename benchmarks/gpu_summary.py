"""What benchmarks/gpu.sh found, as Markdown: python benchmarks/gpu_summary.py OUT

Reads what the five parts wrote, as far as they came; a part without results is named with why.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def main(out: Path) -> None:
    print("# The GPU's day\n")
    print(_text(out / "parts.txt"))
    gpu = _text(out / "nvidia-smi.txt")
    named = [line.strip("| ") for line in gpu.splitlines() if "NVIDIA" in line]
    print("\n".join(named[:2]))
    parts: tuple[tuple[str, Callable[[Path], Iterator[str]]], ...] = (
        ("1. Answers of every engine against ONNX Runtime on the CPU", doctor),
        ("2. Tests that need a GPU", tests),
        ("3. Training: fp32 and bf16", training),
        ("4. Times beside classification and other tools", bench),
        ("5. AFT", aft),
    )
    for title, lines in parts:
        print(f"\n## {title}\n")
        try:
            print("\n".join(lines(out)) or "nothing was written")
        except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
            print(f"no result: {type(error).__name__} {error}; see the part's log")


def doctor(out: Path) -> Iterator[str]:
    reports = [json.loads(path.read_text()) for path in sorted(out.glob("doctor-*.json"))]
    for problem in dict.fromkeys(one for report in reports for one in report["problems"]):
        yield f"- {problem}"
    yield "\n| file | engine | answers | p differs by | maps | classification | explanation | TFT |"
    yield "|---|---|---|---|---|---|---|---|"
    for check in (one for report in reports for one in report["checks"]):
        spreads = (check.get("comparison") or {}).get("differences", {})
        cells = [
            check["model"],
            f"{check['engine']} {check['precision']}",
            ": ".join(filter(None, [check["outcome"], check.get("why")])),
            *(_worst(spreads, name) for name in ("probabilities", "maps")),
            *(_milliseconds(check, name) for name in ("classification", "explanation", "tft")),
        ]
        yield f"| {' | '.join(cells)} |"


def _milliseconds(check: dict[str, Any], name: str) -> str:
    value = check.get("median_ms", {}).get(name)
    return "" if value is None else f"{value:.2f} ms"


def _worst(spreads: dict[str, Any], output: str) -> str:
    """The largest difference of an output, ``output`` or ``output.detail``."""
    found = [spread["worst"] for name, spread in spreads.items() if name.split(".")[0] == output]
    return f"{max(found):.1e}" if found else ""


def tests(out: Path) -> Iterator[str]:
    (suite,) = ElementTree.parse(out / "tests.xml").getroot().iter("testsuite")
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    yield ", ".join(f"{count} {name}" for name, count in counts.items())
    skipped: dict[str, int] = {}
    for case in suite.iter("testcase"):
        for kind in ("failure", "error"):
            for found in case.iter(kind):
                yield f"- {kind}: {case.get('name')}: {(found.get('message') or '')[:200]}"
        for found in case.iter("skipped"):
            reason = (found.get("message") or "")[:160]
            skipped[reason] = skipped.get(reason, 0) + 1
    for reason, count in skipped.items():
        yield f"- skipped, {count}: {reason}"


def training(out: Path) -> Iterator[str]:
    curves = {}
    for precision in ("fp32", "bf16"):
        path = out / f"aft-{precision}" / "losses.csv"
        if path.is_file():
            with path.open(newline="") as file:
                curves[precision] = [list(row.values()) for row in csv.DictReader(file)]
            yield f"- {precision}: {len(curves[precision])} logged steps"
        else:
            yield f"- {precision}: not trained; see 3-training.log"
    if len(curves) == 2:
        pairs = list(zip(curves["fp32"], curves["bf16"], strict=False))
        apart = [abs(float(a[3]) - float(b[3])) / max(abs(float(a[3])), 1e-6) for a, b in pairs]
        median = statistics.median(apart)
        yield f"- losses at the same steps differ by {median:.1%} (median), {max(apart):.1%} (most)"
    for path in sorted(out.glob("aft-*/aft.json")):
        count = json.loads(path.read_text())["trained_on"]
        yield f"- {path.parent.name}: one epoch of {count} images"
    took = [one for one in _text(out / "3-training.log").splitlines() if one.startswith("took ")]
    yield from (f"- {line.split(':')[0]}, preparation and evaluation included" for line in took)
    yield "- masks and evaluations of `train aft` are ONNX Runtime's on the CPU, whatever trains"


def bench(out: Path) -> Iterator[str]:
    for folder in sorted(out.glob("bench-*")):
        document = json.loads((folder / "bench.json").read_text())
        where = document["machine"].get("other_tools_on", "?")
        yield f"\n{folder.name}, {document['rounds']} rounds, other tools on: {where}\n"
        yield "| file | what | batch | TFT | median, ms | of classification |"
        yield "|---|---|---|---|---|---|"
        for row in document["rows"]:
            median = statistics.median(row["seconds"]["answer"]) * 1e3
            what = f"{row['engine']} {row['method'] or 'classification'}"
            ratio = row.get("ratio_to_plain")
            tail = "" if ratio is None else f"{ratio:.2f}"
            tft = "on" if row["tft"] else ""
            name = Path(row["model"]).name
            yield f"| {name} | {what} | {row['batch']} | {tft} | {median:.2f} | {tail} |"
        for one in document["left_out"]:
            yield f"- left out: {one['what']}: {one['reason']}"


def aft(out: Path) -> Iterator[str]:
    found = json.loads((out / "aft" / "aft.json").read_text())
    for name, row in found["rows"].items():
        numbers = {
            key: value
            for key, value in row.items()
            if isinstance(value, float) and not key.endswith("standard_error")
        }
        yield f"- {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items())
    yield f"- accuracy {found['accuracy_before']} before, {found['accuracy_after']} after"


def _text(path: Path) -> str:
    return path.read_text(errors="replace").strip() if path.is_file() else ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
