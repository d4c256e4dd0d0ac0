"""`python -m talk2dino data check|convert|import`: is the data complete, and make it so."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from talk2dino.benchmarks.data.convert import (
    OBJECT_SUFFIX,
    STUFF_SUFFIX,
    find_context_json,
    plan_cityscapes,
    plan_coco,
    plan_context,
    write_lists,
)
from talk2dino.benchmarks.data.importing import FORMATS, plan_import
from talk2dino.benchmarks.data.sources import check_data_root
from talk2dino.benchmarks.table import BENCHMARKS, STUFF_BACKGROUND, Benchmark, find_benchmarks
from talk2dino.cli.convert_coco import convert_files
from talk2dino.cli.entry import DONE, FAILED, Command
from talk2dino.config import check_at_least, check_name, split_names
from talk2dino.files import check_folder_writable

_WRAPPER = textwrap.TextWrapper(
    100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "action",
        choices=("check", "convert", "import"),
        help="check: what is there, what is missing and where to get it; "
        "convert: make the label files that the benchmarks read from the published ones; "
        "import: make a data set of other programs' files",
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help="check: YAML files of data sets; import: a format "
        f"({', '.join(FORMATS)}) and the folder or file in it",
    )
    parser.add_argument("--output", type=Path, help="import: folder of labels and dataset.yaml")
    parser.add_argument(
        "--images", type=Path, help="import: folder of the images (default: as the format says)"
    )
    parser.add_argument(
        "--data_root", type=Path, default=Path("data"), help="folder of all benchmarks"
    )
    parser.add_argument(
        "--benchmarks", help="all, or names and YAML files with commas (voc,mine.yaml)"
    )
    parser.add_argument(
        "--sample", type=int, default=20, help="check: labels to look at per benchmark"
    )
    parser.add_argument(
        "--context_json",
        type=Path,
        help="convert: trainval_merged.json, if it is not in VOCdevkit/VOC2010",
    )
    parser.add_argument(
        "--nproc", type=int, default=16, help="convert, import: files made at the same time"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="convert, import: make again what is there"
    )


def check(args: argparse.Namespace) -> None:
    """Raise for wrong arguments."""
    if args.action == "import":
        check_at_least(1, nproc=args.nproc)
        if len(args.what) != 2 or args.output is None:
            raise ValueError("say `data import FORMAT SOURCE --output FOLDER`.")
        check_name("format", args.what[0], FORMATS)
        check_folder_writable(args.output)
        if not Path(args.what[1]).exists():
            raise FileNotFoundError(f"{args.what[1]}: no such file or folder to import")
        return
    if args.action == "convert" and args.what:
        raise ValueError(f"convert needs no {args.what[0]!r}: choose with --benchmarks.")
    if not _rows(args):
        raise ValueError("the drawn world (toy) is made by quickstart: nothing to convert.")
    check_at_least(1, nproc=args.nproc)
    if args.sample < 0:
        raise ValueError(f"--sample must not be negative, got {args.sample}")
    if args.action == "convert":
        check_data_root(args.data_root)
    if args.context_json is not None and not args.context_json.is_file():
        raise FileNotFoundError(f"--context_json {args.context_json}: no such file")


def run(args: argparse.Namespace, _: None = None) -> int:
    """Check, convert or import."""
    if args.action == "import":
        return import_data(args)
    rows = _rows(args)
    return check_benchmarks(args, rows) if args.action == "check" else convert_data(args, rows)


def _rows(args: argparse.Namespace) -> list[Benchmark]:
    same_files = {STUFF_BACKGROUND.key: BENCHMARKS["coco_stuff"]}
    names = [*args.what, *([args.benchmarks] if args.benchmarks else [])] or ["all"]
    rows = find_benchmarks(split_names(",".join(names)), args.data_root)
    rows = [same_files.get(row.key, row) for row in rows]
    drawn = "" if args.action == "check" else "toy"
    return [row for row in dict.fromkeys(rows) if row.key != drawn]


def check_benchmarks(args: argparse.Namespace, rows: Sequence[Benchmark]) -> int:
    """Print what was found of every benchmark; FAILED if one cannot be evaluated."""
    from talk2dino.benchmarks.data.check import check_data

    if not args.data_root.is_dir() and not all(row.folders for row in rows):
        print(f"! there is no data folder {args.data_root}. Choose it with --data_root\n")
    reports = [check_data(row, args.data_root, args.sample) for row in rows]
    for report in reports:
        counts = f"{report.num_images} images, {report.num_labels} labels"
        print(f"{report.row.key:<13}{report.state:<12}{counts}")
        if report.histogram:
            print(f"    {report.histogram}")
        for mark, texts in (("!", report.problems), ("?", report.warnings)):
            for text in texts:
                print(_WRAPPER.fill(f"  {mark} {text}"))
    usable = [report for report in reports if not report.problems]
    where = "" if all(row.folders for row in rows) else f" in {args.data_root}"
    print(f"{len(usable)} of {len(reports)} benchmarks can be evaluated{where}")
    return DONE if len(usable) == len(reports) else FAILED


def import_data(args: argparse.Namespace) -> int:
    """Write the labels and the YAML file of a data set in another program's format."""
    form, source = args.what
    plan = plan_import(form, Path(source), args.output, args.images, args.overwrite)
    code = convert_files(args, f"{args.output / 'labels'}/*.png", plan.labels)
    if code == DONE:
        print(f"written: {plan.write_yaml()}")
        print(f"python -m talk2dino data check {args.output / 'dataset.yaml'}")
    return code


def convert_data(args: argparse.Namespace, rows: Sequence[Benchmark]) -> int:
    """Convert what the benchmarks need and whose raw files are there.

    With `--benchmarks all` a data set that is not there is only mentioned.
    """
    kinds = [row.key.removesuffix("59") for row in rows]
    code = DONE
    for kind in [kind for kind in _CONVERTERS if kind in kinds]:
        try:
            code = max(code, _CONVERTERS[kind](args))
        except FileNotFoundError as error:
            if args.benchmarks not in (None, "all"):
                raise FileNotFoundError(
                    f"{error} `python -m talk2dino data check --benchmarks {kind}` says what is "
                    "there instead."
                ) from error
            print(f"{kind}: skipped. {error}", file=sys.stderr)
    if args.benchmarks not in (None, "all") and not set(kinds) & set(_CONVERTERS):
        print("nothing to convert: VOC and ADE20K are read as they are published")
    return code


def _convert_coco(args: argparse.Namespace, suffix: str) -> int:
    folder = args.data_root / "coco_stuff164k"
    return convert_files(args, f"*{suffix}.png", plan_coco(folder, folder, suffix))


def _convert_cityscapes(args: argparse.Namespace) -> int:
    plan = plan_cityscapes(args.data_root / "cityscapes")
    return convert_files(args, "*_gtFine_labelTrainIds.png", plan)


def _convert_context(args: argparse.Namespace) -> int:
    folder = args.data_root / "VOCdevkit" / "VOC2010"
    annotations = args.context_json or find_context_json(folder)
    if annotations is None:
        raise FileNotFoundError(
            f"no trainval_merged.json in {folder}. Download it from "
            "https://codalabuser.blob.core.windows.net/public/trainval_merged.json, or name it "
            "with --context_json."
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: unpack VOCtrainval_03-May-2010.tar first")
    print(f"reading {annotations}", file=sys.stderr)
    plan, lists = plan_context(annotations, folder)
    write_lists(folder, lists, args.overwrite)
    return convert_files(args, "SegmentationClassContext/*.png", plan)


_CONVERTERS = {
    "coco_object": lambda args: _convert_coco(args, OBJECT_SUFFIX),
    "coco_stuff": lambda args: _convert_coco(args, STUFF_SUFFIX),
    "cityscapes": _convert_cityscapes,
    "context": _convert_context,
}

COMMAND = Command(
    name="data",
    summary="Check the benchmarks' data, or convert their labels.",
    example="python -m talk2dino data check --data_root data",
    add_arguments=add_arguments,
    check=check,
    run=run,
)
main = COMMAND.main
