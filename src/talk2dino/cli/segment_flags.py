"""The flags of the segment command; those of both published demos keep their names."""

from __future__ import annotations

import argparse

from talk2dino.cli.segment_files import BESIDE_OVERLAY
from talk2dino.cli.segment_model import DEFAULT_MODEL, add_published_flags
from talk2dino.cli.segment_modes import add_modes_flags
from talk2dino.methods.registry import MODEL_NAMES
from talk2dino.pictures.vocabularies import VOCABULARIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--input", nargs="+", metavar="PATH", help="pictures, or folders of them")
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="overlay with legend (.png, .jpg, .webp; .png if left out); a folder for several",
    )
    parser.add_argument(
        "--textual_categories",
        metavar="A,B_C",
        help="class names between commas; underscores mean spaces (for commas in names: --vocab)",
    )
    parser.add_argument(
        "--vocab",
        nargs="+",
        metavar="NAME",
        help=f"in their place {', '.join(VOCABULARIES)}, a .txt file with a name on each line, or "
        "class names as they are, in quotes where they hold spaces",
    )
    _add_model_flags(parser.add_argument_group("model"))
    _add_method_flags(parser.add_argument_group("segmentation"))
    _add_output_flags(parser.add_argument_group("output"))
    add_modes_flags(parser.add_argument_group("several pictures of each image"))
    add_published_flags(parser.add_argument_group("flags of OVSegmentor's published demo"))


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        metavar="NAME",
        help=f"{', '.join(MODEL_NAMES)} (default: {DEFAULT_MODEL})",
    )
    group.add_argument(
        "--config",
        metavar="YAML",
        help="in its place a recipe of configs/, or the model YAML of an evaluation",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<i> or mps")


def _add_method_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--with_background",
        action="store_true",
        help="pixels where no class exceeds the threshold become background (OVSegmentor: always)",
    )
    group.add_argument("--no_background", action="store_true", help="OVSegmentor: without it")
    group.add_argument(
        "--bg_thresh",
        type=float,
        metavar="X",
        help="threshold of the background; lower finds more (default: 0.55 on sigmoid(cosine); "
        "OVSegmentor: 0.95 on its groups' scores)",
    )
    group.add_argument("--refine", metavar="NAMES", help="refinements with commas: pamr")
    group.add_argument(
        "--max_side",
        type=int,
        metavar="PX",
        help="score larger pictures at this long side, to save time and memory (default: never)",
    )


def _add_output_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--opacity", type=float, default=0.5, help="of the class colours, 0 to 1")
    group.add_argument(
        "--save_mask",
        nargs="?",
        const=BESIDE_OVERLAY,
        metavar="PATH",
        help="indexed PNG of class numbers (default name: <output>_mask.png; several: a folder)",
    )
    group.add_argument(
        "--save_scores",
        nargs="?",
        const=BESIDE_OVERLAY,
        metavar="PATH",
        help="NPZ: scores (C, H, W) float32, classes (C,) names, settings (JSON) "
        "(default name: <output>_scores.npz; several: a folder)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace existing output files")
