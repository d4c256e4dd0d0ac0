"""`python -m talk2dino retrieve`: the images of a feature file that fit a text, or the reverse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.command import Command
from talk2dino.config import check_at_least
from talk2dino.files import check_file, check_writable

if TYPE_CHECKING:
    from torch import Tensor

    from talk2dino.features.store import FeatureFile

    Found = tuple[FeatureFile, Tensor]

IMAGES, CAPTIONS = "disentangled_self_attn", "ann_feats"
"""Columns of a feature file: a vector per head of every image, and one of every caption."""
_CELL = 224  # pixels of a picture of the sheet


class Retrieve(Command):
    """Find the images of a feature file that fit a text, or the captions of an image."""

    example = "--store val.pth --text 'a red bus' --top 10"

    store: Path
    """Feature file of extract."""
    text: str | None = None
    """Find the images that fit it, by their best head."""
    image: Path | None = None
    """Find the captions that fit it."""
    top: int = 10
    """How many to find."""
    model: str = "vitb"
    """A Talk2DINO: a name, folder or file."""
    sheet: Path | None = None
    """PNG: draw the found pictures."""
    images: Path | None = None
    """Folder with the pictures of the store."""
    device: str = "auto"
    """Auto, cpu, cuda, cuda:<i> or mps."""
    overwrite: bool = False
    """Replace a sheet that is there."""

    def check(self) -> Found:
        """The feature file and the column that is searched; raises for wrong arguments."""
        from talk2dino.features.store import read_features

        if (self.text is None) == (self.image is None):
            raise ValueError("say what to look for with --text or with --image, one of them.")
        check_at_least(1, top=self.top)
        if self.image is not None:
            check_file(self.image, "picture")
        if self.text is not None and not self.text.strip():
            raise ValueError("--text is empty. Say what to look for.")
        if self.sheet is not None:
            check_writable(self.sheet, self.overwrite)
            if self.images is None or not self.images.is_dir():
                raise ValueError(
                    f"--sheet needs the folder of the pictures: --images {self.images}"
                )
        store = read_features(self.store)
        return store, store.require(CAPTIONS if self.text is None else IMAGES, self.store)

    def run(self, opened: Found) -> None:
        """Print what fits best, with its cosine, and draw it."""
        from functools import partial

        from talk2dino.features.store import check_finite
        from talk2dino.methods.talk2dino.api import Talk2DINO
        from talk2dino.methods.talk2dino.training.dataset import forget
        from talk2dino.methods.talk2dino.training.retrieval import best_rows

        store, column = opened
        model = Talk2DINO.from_pretrained(self.model, device=self.device)
        projection = model.projection
        by_text = self.image is None
        if self.image is not None:
            query = model.encode_image(self.image, "attention")
        else:
            query = model.encode_text(self.text or "")
        project = projection.project_visual if by_text else projection.project_clip_txt
        expected = model.vision.embed_dim if by_text else model.text.embed_dim
        if column.shape[-1] != expected:
            raise ValueError(
                f"{self.store} holds vectors of width {column.shape[-1]}, but {self.model} needs "
                f"{expected}. Name the --model that the features were extracted for."
            )
        key = IMAGES if by_text else CAPTIONS
        done = partial(forget, column) if store.mapped_from else None
        cosines, rows = best_rows(query, column, self.top, project, done)
        check_finite(cosines, key, self.store)  # what is none comes first
        pictures = rows if by_text else store.caption_rows[rows]
        records = [store.images[row] for row in pictures.tolist()]
        names = [str(record.get("file_name", record["id"])) for record in records]
        found = zip(cosines.tolist(), rows.tolist(), names, strict=True)
        for place, (cosine, row, name) in enumerate(found, 1):
            caption = "" if by_text else f"  {store.annotations[row]['caption']}"
            print(f"{place:>3}  {cosine:.4f}  {name}{caption}")
        if self.sheet is not None and self.images is not None:
            _draw([self.images / name for name in names], self.sheet)
            print(f"written: {self.sheet}")


def _draw(paths: Sequence[Path], sheet: Path) -> None:
    """The pictures in rows of five, each inside a square."""
    from PIL import Image, ImageOps

    from talk2dino.pictures.images import read_rgb
    from talk2dino.pictures.segmentation import save_picture

    across = min(len(paths), 5)
    canvas = Image.new("RGB", (across * _CELL, -(-len(paths) // across) * _CELL), "white")
    for place, path in enumerate(paths):
        picture = ImageOps.pad(read_rgb(path), (_CELL - 4, _CELL - 4), color="white")
        down, right = divmod(place, across)
        canvas.paste(picture, (right * _CELL + 2, down * _CELL + 2))
    save_picture(canvas, sheet, "")
