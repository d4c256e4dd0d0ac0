"""One side of one case in a process of its own: runs a step for every line on standard input.

Time and memory are taken in different runs: looking at the memory of a process and its children
every few milliseconds takes a good part of a core.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from speed.case import Step


def main() -> None:
    """Answer `time` with a step's seconds, `watch` with its memory, `save FILE` with a file."""
    registry, name, side, device, folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    bare_mb = resident_mb()
    step = import_module(registry).CASES[name].sides[side](device, Path(folder))
    print("{}", flush=True)
    result = None
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "save":
            torch.save([value.detach().cpu() for value in tensors(result)], argument)
            print("{}", flush=True)
            continue
        result = None  # its memory is free before the next one is made
        if command == "watch":
            before, peak, result = watched(step, device)
            answer = {"peak_mb": peak - before, "resident_mb": peak - bare_mb}
        else:
            seconds, result = timed(step, device)
            answer = {"seconds": seconds}
        print(json.dumps(answer), flush=True)


def timed(step: Step, device: str) -> tuple[float, Any]:
    """Run a step: its seconds and its result."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def watched(step: Step, device: str) -> tuple[float, float, Any]:
    """Run a step: the memory before it and at its peak in MB (2^20 bytes), and its result.

    On a GPU the memory is PyTorch's on the device, on a CPU that of the process and its children.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        result = step()
        torch.cuda.synchronize()
        return before, torch.cuda.max_memory_allocated() / 2**20, result
    before = resident_mb()
    watch = PeakWatch()
    result = step()
    return before, max(watch.stop(), before), result


class PeakWatch:
    """Samples the resident memory of this process and its children until stopped."""

    def __init__(self, interval: float = 0.005) -> None:
        self._peak = resident_mb()
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """The highest value seen, in MB (2^20 bytes)."""
        self._stopped.set()
        self._thread.join()
        return max(self._peak, resident_mb())

    def _sample(self) -> None:
        while not self._stopped.wait(self._interval):
            self._peak = max(self._peak, resident_mb())


def resident_mb() -> float:
    """Resident memory of this process, mapped files included, and its children's share, in MB."""
    total = _kilobytes(Path("/proc/self/status"), "VmRSS:")
    for children in Path("/proc/self/task").glob("*/children"):
        try:
            pids = children.read_text().split()
        except OSError:  # the thread ended meanwhile
            continue
        total += sum(_kilobytes(Path("/proc", pid, "smaps_rollup"), "Pss:") for pid in pids)
    return total / 1024


def _kilobytes(path: Path, key: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:  # the process ended meanwhile
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(key))


def tensors(result: Any) -> list[torch.Tensor]:
    """The tensors in a step's result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, (list, tuple)):
        return [tensor for value in result for tensor in tensors(value)]
    return []


if __name__ == "__main__":
    main()
