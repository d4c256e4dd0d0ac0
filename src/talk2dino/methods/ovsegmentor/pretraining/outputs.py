"""The files of one pretraining: a folder that every command takes as weights."""

from __future__ import annotations

from pathlib import Path

from talk2dino.methods.ovsegmentor.checkpoints import CONFIG_FILE, MODEL_FILES, UNFINISHED_FILE
from talk2dino.training.job import RunOutputs


def pretraining_outputs(folder: Path) -> RunOutputs:
    """The files in a folder, beside the model's own."""
    summary, losses, plot = (
        folder / name for name in ("pretraining.json", "losses.csv", "losses.png")
    )
    return RunOutputs(
        complete=folder / CONFIG_FILE,
        unfinished=folder / UNFINISHED_FILE,
        summary=summary,
        losses=losses,
        plot=plot,
        lock=folder / "lock",
        log=folder / folder.name,
        results=(summary, losses, plot, *(folder / name for name in MODEL_FILES)),
        best=folder / "best.pth",
    )
