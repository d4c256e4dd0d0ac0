"""`data check|convert|import`: is the data complete, and make it so; and `convert-coco`."""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from talk2dino.benchmarks.data.convert import (
    OBJECT_SUFFIX,
    STUFF_SUFFIX,
    Conversion,
    find_context_json,
    plan_cityscapes,
    plan_coco,
    plan_context,
    run_conversions,
    write_lists,
)
from talk2dino.benchmarks.data.importing import FORMATS, plan_import
from talk2dino.benchmarks.table import (
    BENCHMARKS,
    STUFF_BACKGROUND,
    Benchmark,
    check_data_root,
    find_benchmarks,
)
from talk2dino.cli.command import DONE, FAILED, Command, bar_of, few_lines
from talk2dino.config import check_at_least, check_name, split_names
from talk2dino.files import atomic_files, check_file, check_folder_writable

_WRAPPER = textwrap.TextWrapper(
    100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
)
_CONVERTED = ("coco_object", "coco_stuff", "cityscapes", "context")


class Data(Command):
    """Check the benchmarks' data, or convert their labels."""

    positional = ("action", "what")
    details = {
        "action": {"choices": ("check", "convert", "import")},
        "what": {"nargs": "*"},
    }
    example = "check --data_root data"

    action: str
    """Check: what is there, what is missing and where to get it; convert: make the label files
    that the benchmarks read from the published ones; import: make a data set of other programs'
    files."""
    what: list[str]
    """Check: YAML files of data sets; import: a format ({FORMATS}) and the folder or file in it."""
    output: Path | None = None
    """Import: folder of labels and dataset.yaml."""
    images: Path | None = None
    """Import: folder of the images (default: as the format says)."""
    data_root: Path = Path("data")
    """Folder of all benchmarks."""
    benchmarks: str | None = None
    """All, or names and YAML files with commas (voc,mine.yaml)."""
    sample: int = 20
    """Check: labels to look at per benchmark."""
    context_json: Path | None = None
    """Convert: trainval_merged.json, if it is not in VOCdevkit/VOC2010."""
    nproc: int = 16
    """Convert, import: files made at the same time."""
    overwrite: bool = False
    """Convert, import: make again what is there."""

    def check(self) -> list[Benchmark]:
        """The benchmarks that are meant, none of them for import; raises for wrong arguments."""
        check_at_least(1, nproc=self.nproc)
        if self.action == "import":
            if len(self.what) != 2 or self.output is None:
                raise ValueError("say `data import FORMAT SOURCE --output FOLDER`.")
            check_name("format", self.what[0], FORMATS)
            check_folder_writable(self.output)
            if not Path(self.what[1]).exists():
                raise FileNotFoundError(f"{self.what[1]}: no such file or folder to import")
            return []
        if self.action == "convert" and self.what:
            raise ValueError(f"convert needs no {self.what[0]!r}: choose with --benchmarks.")
        same_files = {STUFF_BACKGROUND.key: BENCHMARKS["coco_stuff"]}
        names = [*self.what, *([self.benchmarks] if self.benchmarks else [])] or ["all"]
        found = find_benchmarks(split_names(",".join(names)), self.data_root)
        drawn = "" if self.action == "check" else "toy"
        rows = dict.fromkeys(same_files.get(row.key, row) for row in found if row.key != drawn)
        if not rows:
            raise ValueError("the drawn world (toy) is made by quickstart: nothing to convert.")
        check_at_least(0, **{"--sample": self.sample})
        if self.action == "convert":
            check_data_root(self.data_root)
        if self.context_json is not None:
            check_file(self.context_json)
        return list(rows)

    def run(self, rows: list[Benchmark]) -> int:
        if self.action == "import":
            return self._import()
        return self._check(rows) if self.action == "check" else self._convert(rows)

    def _check(self, rows: Sequence[Benchmark]) -> int:
        """Print what was found of every benchmark; FAILED if one cannot be evaluated."""
        from talk2dino.benchmarks.data.check import check_data

        if not self.data_root.is_dir() and not all(row.folders for row in rows):
            print(f"! there is no data folder {self.data_root}. Choose it with --data_root\n")
        reports = [check_data(row, self.data_root, self.sample) for row in rows]
        for report in reports:
            counts = f"{report.num_images} images, {report.num_labels} labels"
            print(f"{report.row.key:<13}{report.state:<12}{counts}")
            if report.histogram:
                print(f"    {report.histogram}")
            for mark, texts in (("!", report.problems), ("?", report.warnings)):
                for text in texts:
                    print(_WRAPPER.fill(f"  {mark} {text}"))
        usable = [report for report in reports if not report.problems]
        where = "" if all(row.folders for row in rows) else f" in {self.data_root}"
        print(f"{len(usable)} of {len(reports)} benchmarks can be evaluated{where}")
        return DONE if len(usable) == len(reports) else FAILED

    def _import(self) -> int:
        """Write the labels and the YAML file of a data set in another program's format."""
        form, source = self.what
        assert self.output is not None
        labels, files = plan_import(form, Path(source), self.output, self.images, self.overwrite)
        name = f"{self.output / 'labels'}/*.png"
        code = convert_files(name, labels, self.nproc, self.overwrite)
        if code == DONE:
            with atomic_files(self.output, *files) as written:
                for name, text in files.items():
                    (written / name).write_text(text, encoding="utf-8")
            *_, last = files
            print(f"written: {self.output / last}")
            print(f"python -m talk2dino data check {self.output / last}")
        return code

    def _convert(self, rows: Sequence[Benchmark]) -> int:
        """Convert what the benchmarks need and whose raw files are there.

        With `--benchmarks all` a data set that is not there is only mentioned.
        """
        kinds = [row.key.removesuffix("59") for row in rows]
        code = DONE
        for kind in [kind for kind in _CONVERTED if kind in kinds]:
            try:
                found = convert_files(*self._plan(kind), self.nproc, self.overwrite)
                code = max(code, found)
            except FileNotFoundError as error:
                if self.benchmarks not in (None, "all"):
                    raise FileNotFoundError(
                        f"{error} `python -m talk2dino data check --benchmarks {kind}` says what "
                        "is there instead."
                    ) from error
                print(f"{kind}: skipped. {error}", file=sys.stderr)
        if self.benchmarks not in (None, "all") and not set(kinds) & set(_CONVERTED):
            print("nothing to convert: VOC and ADE20K are read as they are published")
        return code

    def _plan(self, kind: str) -> tuple[str, Sequence[Conversion]]:
        """What the label files of a data set are called, and their conversions."""
        coco = self.data_root / "coco_stuff164k"
        if kind.startswith("coco"):
            suffix = OBJECT_SUFFIX if kind == "coco_object" else STUFF_SUFFIX
            return f"*{suffix}.png", plan_coco(coco, coco, suffix)
        if kind == "cityscapes":
            plan = plan_cityscapes(self.data_root / "cityscapes")
            return "*_gtFine_labelTrainIds.png", plan
        folder = self.data_root / "VOCdevkit" / "VOC2010"
        annotations = self.context_json or find_context_json(folder)
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
        write_lists(folder, lists, self.overwrite)
        return "SegmentationClassContext/*.png", plan


class ConvertCoco(Command):
    """Convert COCO-Stuff pixel maps to the 81 labels of COCO-Object."""

    script = "convert_dataset/convert_coco.py"
    positional = ("coco",)
    details = {"out_dir": {"flags": ("--out_dir", "-o")}}
    example = "data/coco_stuff164k -o data/coco_stuff164k"
    gone = {"--stuff": "data convert --benchmarks coco_stuff"}

    coco: Path
    """The coco_stuff164k folder, with annotations/train2017 and val2017."""
    out_dir: Path | None = None
    """Write the same tree here (default: the input)."""
    nproc: int = 16
    """Files converted at the same time."""
    overwrite: bool = False
    """Convert again what is there."""

    def check(self) -> None:
        if not self.coco.is_dir():
            raise FileNotFoundError(
                f"{self.coco}: no such folder; it is to hold annotations/val2017"
            )
        check_at_least(1, nproc=self.nproc)
        check_folder_writable(self.out_dir or self.coco)

    def run(self, found: None) -> int:
        plan = plan_coco(self.coco, self.out_dir or self.coco, OBJECT_SUFFIX)
        return convert_files(f"*{OBJECT_SUFFIX}.png", plan, self.nproc, self.overwrite)


def convert_files(what: str, plan: Sequence[Conversion], nproc: int, overwrite: bool) -> int:
    """Write what is planned, say what was written and what went wrong; returns the exit code."""
    outcome = run_conversions(plan, nproc, overwrite, bar_of("files"))
    print(f"{what}: {outcome.written} written, {outcome.present} were there already")
    if outcome.unknown:
        print(
            f"warning: {len(outcome.unknown)} files hold values that the data set does not "
            "define; their pixels became background or are ignored. Are these the raw files?\n"
            + few_lines(outcome.unknown, 5),
            file=sys.stderr,
        )
    if not outcome.failures:
        return DONE
    print(
        f"error: {len(outcome.failures)} files could not be converted:\n"
        f"{few_lines(outcome.failures, 5)}\nReplace them and run the same command again.",
        file=sys.stderr,
    )
    return FAILED
