"""`python -m talk2dino prepare-captions`: web captions to OVSegmentor's training metafile."""

import sys
from pathlib import Path

from talk2dino.cli.command import DONE, FAILED, Command, bar_of
from talk2dino.config import check_at_least
from talk2dino.files import (
    check_file,
    check_folder_writable,
    check_not_inputs,
    check_writable,
    hold_folder,
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

Found = tuple[Path, Path]


class PrepareCaptions(Command):
    """Filter, merge and pair captions for OVSegmentor's pretraining."""

    positional = ("mode",)
    details = {"mode": {"choices": MODES}, "lemmas": {"choices": LEMMAS}}
    example = "filter --metafile cc12m.tsv --processors 8"
    gone = {"--header": "a header is recognised"}

    mode: str
    """Filter: keep captions that name an entity, in parts; merge: join the parts; makepair: add ten
    partners to every row; json2csv: JSON lines of filename and caption to a csv."""
    metafile: Path | None = None
    """The input: .csv or .tsv; for json2csv .json."""
    dstdir: Path | None = None
    """Folder of the parts (default: subsets, beside the metafile)."""
    out: Path | None = None
    """The result (default: of merge {MERGED} in --dstdir, of makepair <metafile>_pair.csv, of
    json2csv <metafile>.csv)."""
    processors: int = 8
    """Filter: processes, and parts."""
    seed: int = 0
    """Of the pairs."""
    lemmas: str = AUTO
    """Where filter takes singulars from; auto: NLTK's WordNet if its data is installed, else
    lemminflect."""
    compat: bool = False
    """Filter as published: exact words only, so that `dogs` and `Dog` do not count."""
    delete_parts: bool = False
    """Merge: remove the parts after."""
    overwrite: bool = False
    """Replace a result that is there."""

    def check(self) -> Found:
        """What is read, and the file or the folder that is written; raises for wrong arguments."""
        check_at_least(1, processors=self.processors)
        check_at_least(0, seed=self.seed)
        flag = "dstdir" if self.mode == "merge" else "metafile"
        source: Path | None = getattr(self, flag)
        if source is None:
            raise ValueError(f"{self.mode} needs --{flag}")
        read = [source]
        if self.mode == "filter":
            open_table(source)
            find_lemmas(self.lemmas)
            out = self.dstdir or source.parent / "subsets"
            check_not_inputs(part_paths(out, self.processors), read)
            check_folder_writable(out)
            return source, out
        if self.mode == "merge":
            read, out = list_parts(source), source / MERGED
        elif self.mode == "makepair":
            open_table(source).need(ENTITY)
            out = source.with_name(f"{source.stem}_pair.csv")
        else:
            check_file(source)
            out = source.with_suffix(".csv")
        out = self.out or out
        check_not_inputs([out], read)
        check_writable(out, self.overwrite)
        return source, out

    def run(self, found: Found) -> int | None:
        """Do one step; what it writes appears whole."""
        source, out = found
        if self.mode == "filter":
            with hold_folder(out):
                return self._filter(source, out)
        if self.mode == "merge":
            done = f"{merge(list_parts(source), out, self.delete_parts)} parts"
        elif self.mode == "makepair":
            done = f"{make_pairs(source, out, self.seed, bar_of('parts'))} rows"
        else:
            done = f"{json_to_csv(source, out)} rows"
        print(f"{out}: {done}")
        return None

    def _filter(self, source: Path, folder: Path) -> int:
        parts, lemmas = self.processors, find_lemmas(self.lemmas)
        more = {"overwrite": self.overwrite, "compat": self.compat}
        kept, left_out = filter_captions(
            source, folder, parts, lemmas, parts, bar_of("parts"), **more
        )
        reasons = f" (left out: {left_out})" if left_out.reasons else ""
        print(f"{folder}: kept {kept} of {kept + left_out.reasons.total()} captions{reasons}")
        if left_out.examples:
            named = "\n  ".join(left_out.examples)
            print(f"warning: damaged rows were left out; the first:\n  {named}", file=sys.stderr)
        if not kept:
            print("error: no caption names an entity of the list", file=sys.stderr)
        return DONE if kept else FAILED
