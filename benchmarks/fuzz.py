"""Hard inputs by the thousand: every one is answered rightly or refused with a clear message.

    python benchmarks/fuzz.py lite0.onnx --cases 10000 --seed 1
    python benchmarks/fuzz.py --kind onnx,options --cases 500
    python benchmarks/fuzz.py lite0.onnx --seed 1 --case onnx:123

Images, manifests, ONNX files, TensorRT plans and command lines are made from real ones and
damaged by chance. A case fails with any exception but ``whycam.WhyCamError``, any exit code but 0
and 2, a traceback or a warning in the output, a hang, a crash of the interpreter, or a file left
half-written; its folder is kept in --keep. Without a model file a small one is exported, which
needs torch. Exit code 1 if a case fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from hard_inputs.worker import KINDS, Outcome, Worker
from rich.progress import track

# A command line takes a second, the others some hundredths.
SHARES = {"images": 46, "manifests": 20, "onnx": 19, "plans": 12, "options": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", default=",".join(KINDS), help=f"Of: {', '.join(KINDS)}.")
    parser.add_argument("--case", help="Run this one alone, as onnx:123.")
    parser.add_argument("--limit", type=float, default=120, help="Seconds for a case.")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kinds = options.kind.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no kind {', '.join(sorted(unknown))}")
    if options.model and not Path(options.model).is_file():
        parser.error(f"no file {options.model}")
    cases = [options.case] if options.case else list(planned(options.cases, kinds))
    begun = time.monotonic()
    failed: list[Outcome] = []
    counts: Counter[tuple[str, str]] = Counter()
    seconds: Counter[str] = Counter()
    with Worker(options.model, options.seed, options.limit, options.keep) as worker:
        for case in track(cases, "fuzzing", disable=not sys.stderr.isatty()):
            start = time.monotonic()
            found = worker.run(case)
            kind = case.split(":")[0]
            seconds[kind] += time.monotonic() - start
            counts[kind, found.became] += 1
            if found.fault:
                failed.append(found)
                print(f"{found.case} {found.became}: {found.fault}", file=sys.stderr)
    table = {
        kind: {
            "cases": sum(n for (k, _), n in counts.items() if k == kind),
            **{became: n for (k, became), n in sorted(counts.items()) if k == kind},
            "seconds": round(seconds[kind], 1),
        }
        for kind in dict.fromkeys(case.split(":")[0] for case in cases)
    }
    took = round(time.monotonic() - begun, 1)
    if options.json:
        names = [f"{each.case}: {each.became}" for each in failed]
        print(json.dumps({"seed": options.seed, "kinds": table, "failed": names, "seconds": took}))
    else:
        for kind, row in table.items():
            print(kind, *(f"{name} {value}" for name, value in row.items()), sep="  ")
        kept = f", kept in {options.keep}/" if failed else ""
        print(f"{len(cases)} cases, {len(failed)} failed{kept}; {took} s, seed {options.seed}")
    sys.exit(int(bool(failed)))


def planned(count: int, kinds: Sequence[str]) -> Iterator[str]:
    """Names of cases: so many, the kinds by their shares and evenly mixed."""
    total = sum(SHARES[kind] for kind in kinds)
    numbers = dict.fromkeys(kinds, 0)
    for index in range(count):
        # Whoever lags most behind its share.
        kind = max(kinds, key=lambda k: SHARES[k] / total * (index + 1) - numbers[k])
        yield f"{kind}:{numbers[kind]}"
        numbers[kind] += 1


if __name__ == "__main__":
    main()
