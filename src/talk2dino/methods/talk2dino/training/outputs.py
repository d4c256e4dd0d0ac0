"""The files of one training: they share the stem of the weights and lie beside them."""

from __future__ import annotations

from pathlib import Path

from talk2dino.training.outputs import RunOutputs

SUFFIX = ".pth"
HEADS_SUFFIX = ".heads.json"


def projection_outputs(weights: Path) -> RunOutputs:
    """The files of a training that writes the plain state dict `weights`."""
    if weights.suffix != SUFFIX:
        raise ValueError(f"--out {weights}: the name of the weights must end in {SUFFIX}")
    names = (HEADS_SUFFIX, ".losses.csv", ".losses.png", SUFFIX, ".json")
    _, losses, plot, _, summary = results = tuple(weights.with_suffix(name) for name in names)
    return RunOutputs(
        complete=weights,
        unfinished=weights.with_suffix(".resume.pth"),
        summary=summary,
        losses=losses,
        plot=plot,
        lock=weights.with_suffix(".lock"),
        log=weights,
        results=results,
    )


def default_weights(recipe: str | Path, pedix: str = "") -> Path:
    """`weights/<recipe name>[_<pedix>].pth`, in the current folder."""
    ending = f"_{pedix.removeprefix('_')}" if pedix else ""
    return Path("weights") / f"{Path(recipe).stem}{ending}{SUFFIX}"
