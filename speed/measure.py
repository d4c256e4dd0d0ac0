"""Runs the sides of a case in turns, each in its own process, and compares them."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import talk2dino.cli  # noqa: F401  threads wait as they do in the commands
from speed.case import LITERAL, SHIPPED, Case

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class SideResult:
    """What one side took."""

    seconds: float
    """Median of the timed runs."""
    peak_mb: float
    """Most memory that the watched run took beyond what was there before it."""
    resident_mb: float
    """Most memory of the whole process beyond one that has only imported PyTorch."""


@dataclass(frozen=True)
class Measured:
    """A measured case."""

    case: Case
    sides: dict[str, SideResult]
    repeats: int
    """Timed runs of each side."""
    max_difference: float | None
    """Largest absolute difference between the results of SHIPPED and LITERAL."""

    def ratio(self, side: str = LITERAL) -> float:
        """How many times longer a side took than SHIPPED."""
        return self.sides[side].seconds / self.sides[SHIPPED].seconds

    def missed(self, device: str) -> list[str]:
        """What is asked for and was not reached, in words."""
        shipped, case = self.sides[SHIPPED], self.case
        if device == "cuda":
            rate = case.work / shipped.seconds
            slow = case.cuda_rate and rate < case.cuda_rate
            return [f"{rate:,.0f} {case.unit}/s of {case.cuda_rate:,.0f}"] if slow else []
        found = [
            f"{self.ratio(side):.2f}x of {target:.2f}x ({side})"
            for side, target in case.targets.items()
            if self.ratio(side) < target
        ]
        figures = {"seconds": shipped.seconds, "resident_mb": shipped.resident_mb}
        if LITERAL in self.sides:
            figures["peak_share"] = shipped.peak_mb / self.sides[LITERAL].peak_mb
        found += [
            f"{name} {figures[name]:.3g}, at most {limit:.3g}"
            for name, limit in case.limits.items()
            if figures[name] > limit
        ]
        return found

    def record(self) -> dict[str, Any]:
        """As plain JSON data."""
        shipped = self.sides[SHIPPED]
        record: dict[str, Any] = {
            "title": self.case.title,
            "repeats": self.repeats,
            "seconds": shipped.seconds,
            "peak_mb": shipped.peak_mb,
            "resident_mb": shipped.resident_mb,
        }
        if LITERAL in self.sides:
            literal = self.sides[LITERAL]
            record |= {
                "ratio": self.ratio(),
                "literal_seconds": literal.seconds,
                "literal_peak_mb": literal.peak_mb,
                "literal_resident_mb": literal.resident_mb,
                "max_difference": self.max_difference,
            }
        baselines = {
            side: {"seconds": result.seconds, "peak_mb": result.peak_mb, "ratio": self.ratio(side)}
            for side, result in self.sides.items()
            if side not in (SHIPPED, LITERAL)
        }
        if baselines:
            record["baselines"] = baselines
        if self.case.work:
            record["rate"] = self.case.work / shipped.seconds
            record["unit"] = self.case.unit
        if self.case.targets:
            record["targets"] = dict(self.case.targets)
        if self.case.limits:
            record["limits"] = dict(self.case.limits)
        return record


class Worker:
    """A side in its own process."""

    def __init__(
        self, registry: str, name: str, side: str, device: str, folder: Path, threads: int
    ) -> None:
        arguments = [registry, name, side, device, str(folder), str(threads)]
        self._what = f"{name}, {side}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "speed.worker", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def prepared(self) -> None:
        """Wait until the step is ready."""
        self._answer()

    def watch(self) -> dict[str, float]:
        """The memory of one step: peak_mb and resident_mb."""
        return self._ask("watch")

    def time(self) -> float:
        """The seconds of one step."""
        return self._ask("time")["seconds"]

    def save(self, path: Path) -> None:
        """Write the tensors of the last result."""
        self._ask(f"save {path}")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()

    def _ask(self, line: str) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self._what}: the process ended with {self._process.wait()}")


def measure(
    name: str,
    device: str = "cpu",
    threads: int = 1,
    repeats: int | None = None,
    registry: str = "speed.cases",
) -> Measured:
    """Measure a case: every side once for its memory, then in turns for its time.

    All but the literal side have their memory watched once more at the end: it should not grow.

    Args:
        name: of the case.
        device: "cpu" or "cuda".
        threads: of PyTorch in each process; the sides never run at the same time.
        repeats: timed runs of each side; None takes the case's.
        registry: module whose CASES has the case.

    Raises:
        RuntimeError: a process ended early; its own message is above.
    """
    case: Case = import_module(registry).CASES[name]
    repeats = case.repeats if repeats is None else repeats
    folder = Path(tempfile.mkdtemp(prefix=f"talk2dino-speed-{name}-"))
    workers: dict[str, Worker] = {}
    try:
        case.inputs(folder)
        for side in case.sides:
            workers[side] = Worker(registry, name, side, device, folder, threads)
            workers[side].prepared()
        memory = {side: worker.watch() for side, worker in workers.items()}
        rounds = [{side: worker.time() for side, worker in workers.items()} for _ in range(repeats)]
        for side, worker in workers.items():
            if side != LITERAL:
                last = worker.watch()
                memory[side] = {key: max(value, last[key]) for key, value in memory[side].items()}
        sides = {
            side: SideResult(statistics.median(times[side] for times in rounds), **memory[side])
            for side in workers
        }
        difference = _difference(workers, folder) if LITERAL in workers else None
        for worker in workers.values():
            worker.close()
    finally:
        for worker in workers.values():
            worker.kill()
        shutil.rmtree(folder, ignore_errors=True)
    return Measured(case, sides, repeats, difference)


def _difference(workers: dict[str, Worker], folder: Path) -> float | None:
    """Largest absolute difference of the results, or None if there is nothing to compare."""
    saved = []
    for side in (SHIPPED, LITERAL):
        workers[side].save(folder / f"{side}.pt")
        saved.append(torch.load(folder / f"{side}.pt", weights_only=True))
    if len(saved[0]) != len(saved[1]):
        raise RuntimeError(f"{len(saved[0])} results from one side, {len(saved[1])} from the other")
    pairs = zip(*saved, strict=True)
    return max(
        ((one.double() - other.double()).abs().max().item() for one, other in pairs), default=None
    )
