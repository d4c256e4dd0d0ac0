"""Label maps as PNG files: class ids for programs, palettes for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from talk2dino.benchmarks.data.labels import IGNORED, ignored_label
from talk2dino.files import atomic_path, check_folder_writable, write_text

OWNER = ".talk2dino-run"
"""A file in a folder of label maps that names the run they belong to."""

_VOID_COLOUR = (224, 224, 192)  # Pascal VOC's


@dataclass(frozen=True)
class PictureFolders:
    """Where label maps go; None for those not wanted."""

    predictions: Path | None = None
    """Folder that gets class ids, one PNG per image."""
    coloured: Path | None = None
    """Folder that gets predictions in the colours of the data set."""
    truth: Path | None = None
    """Folder that gets the ground truth in the colours of the data set."""

    def wanted(self) -> list[Path]:
        """The folders that are written to."""
        return [path for path in (self.predictions, self.coloured, self.truth) if path is not None]

    def below(self, name: str) -> PictureFolders:
        """The same folders, with one subfolder per benchmark."""
        folders = (self.predictions, self.coloured, self.truth)
        return PictureFolders(*(None if path is None else path / name for path in folders))

    def complete(self, name: str) -> bool:
        """Whether all pictures of an image are there."""
        return all((folder / f"{name}.png").is_file() for folder in self.wanted())

    def check(self, run: str) -> None:
        """Raise unless the folders are new, or hold pictures of this very run.

        Raises:
            FileExistsError: a folder holds PNGs of something else.
        """
        if len(set(self.wanted())) != len(self.wanted()):
            raise ValueError("predictions and ground truth need different folders, found one.")
        for folder in self.wanted():
            check_folder_writable(folder)
            owner = folder / OWNER
            known = owner.read_text(encoding="utf-8").strip() if owner.is_file() else None
            if known == run or not folder.is_dir() or not any(folder.rglob("*.png")):
                continue
            raise FileExistsError(
                f"{folder} holds label maps of {known or 'something else'}, not of {run}. "
                "Choose another folder; nothing is overwritten."
            )

    def claim(self, run: str) -> None:
        """Make the folders and note whose they are."""
        for folder in self.wanted():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / OWNER, f"{run}\n")

    def write(
        self, name: str, predicted: np.ndarray, target: np.ndarray, palette: np.ndarray
    ) -> None:
        """Write the wanted pictures of one image.

        Args:
            name: theirs, with the sub-folders of the image.
            predicted, target: (H, W) class ids; uint16 makes a 16-bit PNG of the prediction.
            palette: (C, 3) uint8.
        """
        if self.predictions is not None:
            _save(Image.fromarray(predicted), self.predictions / f"{name}.png")
        for folder, labels in ((self.coloured, predicted), (self.truth, target)):
            if folder is not None:
                _save(palette_picture(labels, palette), folder / f"{name}.png")


def palette_picture(labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Class ids (H, W) in the colours (C, 3) of their data set.

    As a palette where that has places for them, else as plain colours.
    """
    count, ignored = len(palette), ignored_label(len(palette))
    colours = np.zeros((ignored + 1, 3), np.uint8)
    colours[:count] = palette
    colours[ignored] = _VOID_COLOUR
    if ignored != IGNORED:
        return Image.fromarray(colours[labels])
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(colours.tobytes())
    return image


def _save(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
