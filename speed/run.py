"""Measure the shipped code against paper-literal versions of it.

python speed/run.py pamr
python speed/run.py all --json speed.json --page docs/performance.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from speed.case import LITERAL  # noqa: E402
from speed.cases import CASES, ON_CUDA, PATHS  # noqa: E402
from speed.measure import Measured, measure  # noqa: E402
from speed.table import write_table  # noqa: E402
from talk2dino.files import atomic_path  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    known = ", ".join([*PATHS, "all"])
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="*", default=["all"], help=f"{known}, or single cases")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process")
    parser.add_argument("--repeats", type=int, help="timed runs of each side (default: 5 or more)")
    parser.add_argument("--json", type=Path, help="file for the figures; added to what is there")
    parser.add_argument(
        "--page", type=Path, help="Markdown page whose table is replaced by all figures in --json"
    )
    args = parser.parse_args(argv)
    if args.page and not args.json:
        parser.error("--page takes its figures from --json: name that file too")
    if args.repeats is not None and args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    try:
        names = names_of(args.paths, args.device)
    except ValueError as error:
        parser.error(str(error))
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    machine = _machine(args.device, args.threads)
    print(machine)
    for name in names:
        measured = measure(name, args.device, args.threads, args.repeats)
        _show(name, measured, args.device)
        if args.json:
            records = _add(args.json, name, measured.record() | {"machine": machine})
            if args.page:
                write_table(args.page, args.device, records)


def names_of(paths: list[str], device: str) -> list[str]:
    """The cases of paths or cases, each once.

    Raises:
        ValueError: an unknown name; the known ones are listed.
    """
    names: list[str] = []
    for path in paths:
        if path in CASES and path not in PATHS:
            names.append(path)
        elif path in PATHS or path == "all":
            for one in PATHS if path == "all" else [path]:
                names += [*PATHS[one], *(ON_CUDA.get(one, ()) if device == "cuda" else ())]
        else:
            known = ", ".join([*PATHS, *CASES, "all"])
            raise ValueError(f"no path or case named {path!r}. Known: {known}")
    return list(dict.fromkeys(names))


def _show(name: str, measured: Measured, device: str) -> None:
    print(f"\n{name}: {measured.case.title} (median of {measured.repeats})")
    for side, result in measured.sides.items():
        target = measured.case.targets.get(side)
        print(
            f"  {side:<14}{result.seconds * 1000:>11.1f} ms{measured.ratio(side):>9.2f} x"
            f"{result.peak_mb:>9.0f} MB extra{result.resident_mb:>8.0f} MB in all"
            + (f"   (asked: {target:g} x)" if target else "")
        )
    if measured.case.work:
        rate = measured.record()["rate"]
        print(f"  {rate:,.1f} {measured.case.unit}/s")
    if LITERAL in measured.sides and measured.max_difference is not None:
        print(f"  largest difference of the results: {measured.max_difference:.2g}")
    for target in measured.missed(device):
        print(f"  missed: {target}")


def _add(path: Path, name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Add a case to a JSON file, whose other cases stay; returns all, in the order of CASES."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    found[name] = record
    found = {case: found[case] for case in CASES if case in found}
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(found, indent=2) + "\n")
    return found


def _machine(device: str, threads: int) -> str:
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, {versions}"
    return f"{_cpu_name()}, {threads} threads, {versions}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
