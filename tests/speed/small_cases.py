"""Cases that take no time, for the tests of the harness."""

import torch

from speed.case import LITERAL, SHIPPED, Case


def _numbers(folder):
    torch.save(torch.arange(4.0), folder / "numbers.pt")


def _side(factor, megabytes):
    def prepare(device, folder):
        numbers = torch.load(folder / "numbers.pt", weights_only=True).to(device)

        def step():
            torch.ones(megabytes << 18).sum()
            return {"scaled": numbers * factor, "kept": [numbers]}

        return step

    return prepare


def _broken(device, folder):
    raise RuntimeError("this side cannot be prepared")


CASES = {
    "same": Case(
        "two sides",
        {SHIPPED: _side(1, 8), LITERAL: _side(1.5, 64), "bare": _side(1, 1)},
        inputs=_numbers,
        targets={LITERAL: 2, "bare": 0.5},
        work=4,
        unit="numbers",
    ),
    "alone": Case("one side", {SHIPPED: _side(1, 1)}, inputs=_numbers),
    "broken": Case("a side that fails", {SHIPPED: _broken}),
}
