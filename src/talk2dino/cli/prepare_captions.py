"""`python -m talk2dino prepare-captions`: web captions to OVSegmentor's training metafile."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from talk2dino.cli.entry import DONE, FAILED, Command, bar_of
from talk2dino.files import (
    check_file,
    check_folder_writable,
    check_not_inputs,
    check_writable,
    hold_lock,
)
from talk2dino.methods.ovsegmentor.data.prepare import (
    MERGED,
    filter_captions,
    json_to_csv,
    list_parts,
    make_pairs,
    merge,
    part_paths,
)
from talk2dino.methods.ovsegmentor.data.table import ENTITY, open_table
from talk2dino.methods.ovsegmentor.data.words import AUTO, LEMMAS, find_lemmas

MODES = ("filter", "merge", "makepair", "json2csv")
_LOCK = ".prepare-captions.lock"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "mode",
        choices=MODES,
        help="filter: keep captions that name an entity, in parts; merge: join the parts; "
        "makepair: add ten partners to every row; json2csv: JSON lines of filename and caption "
        "to a csv",
    )
    parser.add_argument("--metafile", type=Path, help="the input: .csv or .tsv; for json2csv .json")
    parser.add_argument(
        "--dstdir", type=Path, help="folder of the parts (subsets, beside the metafile)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help=f"the result of merge ({MERGED} in --dstdir), makepair (<metafile>_pair.csv) and "
        "json2csv (<metafile>.csv)",
    )
    parser.add_argument("--processors", type=int, default=8, help="filter: processes, and parts")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs")
    parser.add_argument(
        "--lemmas",
        choices=LEMMAS,
        default=AUTO,
        help="where filter takes singulars from; auto: NLTK's WordNet if its data is installed, "
        "else lemminflect",
    )
    parser.add_argument("--delete_parts", action="store_true", help="merge: remove the parts after")
    parser.add_argument("--overwrite", action="store_true", help="replace a result that is there")


def check(args: argparse.Namespace) -> None:
    """Raise for wrong arguments."""
    if args.processors < 1:
        raise ValueError(f"--processors must be at least 1, got {args.processors}")
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, got {args.seed}")
    if args.mode == "merge":
        if args.dstdir is None:
            raise ValueError("merge needs --dstdir, the folder with the parts")
    elif args.metafile is None:
        raise ValueError(f"{args.mode} needs --metafile")
    elif args.mode == "json2csv":
        check_file(args.metafile)
    else:
        table = open_table(args.metafile)
        if args.mode == "makepair":
            table.column(ENTITY)
    if args.mode == "filter":
        find_lemmas(args.lemmas)
        check_not_inputs(part_paths(_folder(args), args.processors), [args.metafile])
        check_folder_writable(_folder(args))
    else:
        out, inputs = _out(args), [args.metafile]
        if args.mode == "merge":
            inputs = list_parts(args.dstdir)
        check_not_inputs([out], inputs)
        if (out.parent / _LOCK).exists():  # of a run that is at work, or was killed
            with _alone(args):
                pass
        check_writable(out, args.overwrite)


def run(args: argparse.Namespace, _: None = None) -> int:
    """Do one step."""
    modes = {"filter": _filter, "merge": _merge, "makepair": _pair, "json2csv": _json}
    with _alone(args):
        return modes[args.mode](args)


@contextmanager
def _alone(args: argparse.Namespace) -> Iterator[None]:
    folder = _folder(args) if args.mode == "filter" else _out(args).parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = hold_lock(folder / _LOCK)
    try:
        yield
    finally:
        (folder / _LOCK).unlink(missing_ok=True)
        lock.close()


def _filter(args: argparse.Namespace) -> int:
    folder, parts = _folder(args), args.processors
    kept, left_out = filter_captions(
        args.metafile,
        folder,
        parts,
        find_lemmas(args.lemmas),
        processes=parts,
        progress=bar_of("parts"),
        overwrite=args.overwrite,
    )
    reasons = f" (left out: {left_out})" if left_out.reasons else ""
    print(f"{folder}: kept {kept} of {kept + left_out.reasons.total()} captions{reasons}")
    if left_out.examples:
        named = "\n  ".join(left_out.examples)
        print(f"warning: damaged rows were left out; the first:\n  {named}", file=sys.stderr)
    if not kept:
        print("error: no caption names an entity of the list", file=sys.stderr)
        return FAILED
    return DONE


def _merge(args: argparse.Namespace) -> int:
    out = _out(args)
    parts = list_parts(args.dstdir)
    merge(parts, out, args.delete_parts)
    print(f"{out}: {len(parts)} parts")
    return DONE


def _pair(args: argparse.Namespace) -> int:
    out = _out(args)
    rows = make_pairs(args.metafile, out, args.seed, bar_of("parts"))
    print(f"{out}: {rows} rows")
    return DONE


def _json(args: argparse.Namespace) -> int:
    out = _out(args)
    rows = json_to_csv(args.metafile, out)
    print(f"{out}: {rows} rows")
    return DONE


def _folder(args: argparse.Namespace) -> Path:
    return args.dstdir or args.metafile.parent / "subsets"


def _out(args: argparse.Namespace) -> Path:
    """The file that a mode other than filter writes."""
    if args.out:
        return args.out
    if args.mode == "merge":
        return args.dstdir / MERGED
    suffix = "_pair.csv" if args.mode == "makepair" else ".csv"
    return args.metafile.with_name(args.metafile.stem + suffix)


COMMAND = Command(
    name="prepare-captions",
    summary="Filter, merge and pair captions for OVSegmentor's pretraining.",
    example="python -m talk2dino prepare-captions filter --metafile cc12m.tsv --processors 8",
    add_arguments=add_arguments,
    check=check,
    run=run,
)
