"""`python -m talk2dino retrieve`: the images of a feature file that fit a text, or the reverse."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.entry import DONE, Command
from talk2dino.config import check_at_least
from talk2dino.files import check_writable

if TYPE_CHECKING:
    from torch import Tensor

    from talk2dino.features.store import FeatureFile

IMAGES, CAPTIONS = "disentangled_self_attn", "ann_feats"
"""Columns of a feature file: a vector per head of every image, and one of every caption."""
_CELL = 224  # pixels of a picture of the sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--store", type=Path, required=True, help="feature file of extract")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--text", help="find the images that fit it, by their best head")
    asked.add_argument("--image", type=Path, help="find the captions that fit it")
    parser.add_argument("--top", type=int, default=10, help="how many to find")
    parser.add_argument("--model", default="vitb", help="a Talk2DINO: a name, folder or file")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw the found pictures")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="where the pictures of the store are"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<i> or mps")
    parser.add_argument("--overwrite", action="store_true", help="replace a sheet that is there")


def check(args: argparse.Namespace) -> tuple[FeatureFile, Tensor]:
    """The feature file and the column that is searched; raises for wrong arguments."""
    from talk2dino.features.store import read_features

    check_at_least(1, top=args.top)
    if args.image is not None and not args.image.is_file():
        raise FileNotFoundError(f"{args.image}: no such picture")
    if args.text is not None and not args.text.strip():
        raise ValueError("--text is empty. Say what to look for.")
    if args.sheet is not None:
        check_writable(args.sheet, args.overwrite)
        if args.images is None or not args.images.is_dir():
            raise ValueError(f"--sheet needs the folder of the pictures: --images {args.images}")
    store = read_features(args.store)
    return store, store.require(CAPTIONS if args.text is None else IMAGES, args.store)


def run(args: argparse.Namespace, opened: tuple[FeatureFile, Tensor]) -> int:
    """Print what fits best, with its cosine, and draw it."""
    from functools import partial

    from talk2dino.features.store import check_finite
    from talk2dino.methods.talk2dino.api import Talk2DINO
    from talk2dino.methods.talk2dino.training.columns import forget
    from talk2dino.methods.talk2dino.training.retrieval import best_rows

    store, column = opened
    model = Talk2DINO.from_pretrained(args.model, device=args.device)
    projection = model.projection
    by_text = args.text is not None
    query = model.encode_text(args.text) if by_text else model.encode_image(args.image, "attention")
    project = projection.project_visual if by_text else projection.project_clip_txt
    expected = model.vision.embed_dim if by_text else model.text.embed_dim
    if column.shape[-1] != expected:
        raise ValueError(
            f"{args.store} holds vectors of width {column.shape[-1]}, but {args.model} needs "
            f"{expected}. Name the --model that the features were extracted for."
        )
    key = IMAGES if by_text else CAPTIONS
    done = partial(forget, column) if store.mapped_from else None
    cosines, rows = best_rows(query, column, args.top, project, done)
    check_finite(cosines, key, args.store)  # what is none comes first
    pictures = rows if by_text else store.caption_rows[rows]
    names = [_name(store.images[row]) for row in pictures.tolist()]
    found = zip(cosines.tolist(), rows.tolist(), names, strict=True)
    for place, (cosine, row, name) in enumerate(found, 1):
        caption = "" if by_text else f"  {store.annotations[row]['caption']}"
        print(f"{place:>3}  {cosine:.4f}  {name}{caption}")
    if args.sheet is not None:
        _draw([args.images / name for name in names], args.sheet)
        print(f"written: {args.sheet}")
    return DONE


def _name(record: dict[str, object]) -> str:
    return str(record.get("file_name", record["id"]))


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


COMMAND = Command(
    name="retrieve",
    summary="Find the images of a feature file that fit a text, or the captions of an image.",
    example="python -m talk2dino retrieve --store val.pth --text 'a red bus' --top 10",
    add_arguments=add_arguments,
    check=check,
    run=run,
)

main = COMMAND.main
