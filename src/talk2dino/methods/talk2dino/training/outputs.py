"""The files of one training: they share the stem of the weights and lie beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from talk2dino.training.outputs import check_destroys

SUFFIX = ".pth"


@dataclass(frozen=True)
class Outputs:
    """Names of the files for weights at `<stem>.pth`."""

    weights: Path
    """Plain state dict of the projection."""

    def __post_init__(self) -> None:
        if self.weights.suffix != SUFFIX:
            raise ValueError(f"--out {self.weights}: the name of the weights must end in {SUFFIX}")

    @property
    def unfinished(self) -> Path:
        """State of a training under way, removed when it is complete."""
        return self.weights.with_suffix(".resume.pth")

    @property
    def summary(self) -> Path:
        """Command, settings, recipe and results, as JSON."""
        return self.weights.with_suffix(".json")

    @property
    def losses(self) -> Path:
        """Losses per epoch, as CSV."""
        return self.weights.with_suffix(".losses.csv")

    @property
    def plot(self) -> Path:
        """The same as a picture."""
        return self.weights.with_suffix(".losses.png")

    @property
    def heads(self) -> Path:
        """Chosen head per caption, if asked for, as JSON."""
        return self.weights.with_suffix(".heads.json")

    @property
    def lock(self) -> Path:
        """Held while a training writes these files, removed when it is complete."""
        return self.weights.with_suffix(".lock")

    @property
    def results(self) -> list[Path]:
        """What a complete training leaves; the last one makes the others valid."""
        return [self.heads, self.losses, self.plot, self.weights, self.summary]

    def remove_unfinished(self) -> None:
        """Remove the state of a training that is complete."""
        self.unfinished.unlink(missing_ok=True)
        self.lock.unlink(missing_ok=True)


def default_weights(recipe: str | Path, pedix: str = "") -> Path:
    """`weights/<recipe name>[_<pedix>].pth`, in the current folder."""
    ending = f"_{pedix.removeprefix('_')}" if pedix else ""
    return Path("weights") / f"{Path(recipe).stem}{ending}{SUFFIX}"


def check_outputs(outputs: Outputs, overwrite: bool, resume: bool) -> None:
    """Raise if the training would destroy something, or could not write; see `check_destroys`."""
    check_destroys(
        *(outputs.unfinished, outputs.weights, overwrite, resume),
        begun=f"{outputs.unfinished} holds an unfinished training.",
        done=f"{outputs.weights} exists already. Write elsewhere with --out or --name_pedix, "
        "or replace it with --overwrite (--resume goes on with an interrupted training).",
    )
