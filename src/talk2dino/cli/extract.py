"""Images and captions in, a file of features out: `dino_extraction_v2.py`, and of their texts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from talk2dino.cli.command import (
    DONE,
    FAILED,
    Command,
    add_flags,
    bar_of,
    core_share,
    few_lines,
    from_flags,
)
from talk2dino.devices import AMP_TYPES, DTYPES
from talk2dino.features.keys import IMAGE_KEYS, LAYOUTS
from talk2dino.files import write_text

if TYPE_CHECKING:
    from talk2dino.features.captions import CaptionInput
    from talk2dino.features.chunks import Extraction
    from talk2dino.features.job import Job
    from talk2dino.features.store import FeatureFile

SHOWN_FAILURES = 10
_JOB = "features.job:Job"


class ExtractionCommand(Command):
    """What the two extraction commands share: where the features go, and the work itself."""

    ann_path: Path
    """COCO captions JSON, feature file (.pth), or folder or pattern of tars."""
    out_path: Path | None = None
    """The .pth file, or the folder of the shards (default: the annotation path with .pth)."""
    write_as_wds: bool = False
    """Write webdataset shards."""
    layout: str | None
    n_shards: int
    job_id: int | None
    out_offset: int

    @classmethod
    def output_flags(cls, parser: argparse.ArgumentParser, settings: str, n_shards: int) -> None:
        """Declare number types, where the features go, and how the input is divided."""
        amp = {"nargs": "?", "const": "auto", "choices": AMP_TYPES}
        add_flags(parser, settings, "amp", amp=amp)
        group = parser.add_argument_group("output")
        cls.own_flags(group, "out_path", "write_as_wds")
        splits = ("n_in_splits=num_jobs|n_in_splits|n_in_split", "job_id", "in_batch_offset")
        flags = ("layout", "n_shards", *splits, "out_offset", "overwrite")
        add_flags(group, _JOB, *flags, layout={"choices": LAYOUTS}, n_shards=n_shards)
        add_flags(group, settings, "dtype", dtype={"choices": DTYPES})

    def job(self, data: CaptionInput, extraction: Extraction) -> Job:
        """Take over the job of a run: what is read, and what makes the features."""
        from talk2dino.features.job import Job

        if self.write_as_wds and self.n_shards < 1:
            raise ValueError(f"--n_shards must be at least 1, got {self.n_shards}")
        if self.write_as_wds and self.layout:
            raise ValueError("--layout is for .pth files; leave it out with --write_as_wds")
        given = {"path": self.place(), "n_shards": self.n_shards if self.write_as_wds else 0}
        return from_flags(Job, self, data=data, extraction=extraction, **given)

    def place(self) -> Path:
        """`--out_path`, or the annotation path with `.pth`; for shards a folder.

        Raises:
            ValueError: a pattern of tars has no natural output name, or the path is of the wrong
                kind.
        """
        from talk2dino.features.tars import is_tar_input

        source, tars = self.ann_path, is_tar_input(self.ann_path)
        folder = source.is_dir()
        if self.out_path is None and tars and not folder:
            raise ValueError("--out_path is needed when --ann_path names tars")
        path = self.out_path or source.with_name(f"{source.name if folder else source.stem}.pth")
        if not self.write_as_wds:
            if path.is_dir() or path.suffix not in (".pth", ".pt"):
                raise ValueError(
                    f"--out_path {path} must end in .pth and be no folder (or add --write_as_wds)"
                )
            return path
        path = path.with_suffix("") if path.suffix in (".pth", ".tar") else path
        if path.exists() and not path.is_dir():
            raise ValueError(f"--out_path {path} is a file; shards need a folder")
        if tars and path.resolve() == (source if folder else source.parent).resolve():
            raise ValueError(
                f"the shards would be written among the tars of the input in {path}. "
                "Give another folder with --out_path."
            )
        return path

    def extract(self, job: Job, failed: Path | None = None) -> list[str]:
        """Extract split after split; returns the failures.

        Args:
            job: what is to be done.
            failed: where the failures are listed.
        """
        from talk2dino.processes import joined_processes

        with joined_processes() as processes, job:
            job.join(processes)
            unit = job.extraction.unit
            if processes.count > 1:  # the first one shows its own share
                unit = f"{unit} of the first of {processes.count} processes"
            for split in job.pending():
                features = job.make(split, bar_of(unit, job.leads))
                if features is not None:
                    _report_written(features, job.outputs[split], job.extraction.keys)
            failures = job.failures()
            if job.leads and failed:  # before the job is over: a kill must not lose the list
                _report_failures(failures, failed)
        return failures


class Extract(ExtractionCommand):
    """Extract image features with a frozen vision backbone."""

    script = "dino_extraction_v2.py"
    example = (
        "--ann_path ../coco/captions_val2014.json --out_path ../coco2014_b14/val.pth "
        "--model dinov2_vitb14_reg --resize_dim 448 --crop_dim 448 --extract_avg_self_attn "
        "--extract_disentangled_self_attn"
    )

    data_dir: Path = Path("../coco/")
    """Image folder."""
    keys: list[str] | None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the published flags and ours."""
        cls.own_flags(parser, "ann_path", "data_dir")
        add_flags(parser, _JOB, "max_failures")
        names = ["model", "weights=vision_weights", "resize_dim", "crop_dim", "resize"]
        names += ["blip_model", "compile", "device", "batch_size", "workers"]
        settings = "features.extract:ImageExtraction"
        add_flags(parser, settings, *names, resize="exact", workers=default_workers())
        group = parser.add_argument_group("features (without any of these: --extract_cls)")
        for key, flag in IMAGE_KEYS.items():
            stored = f"store {key}"
            group.add_argument(flag, dest="keys", action="append_const", const=key, help=stored)
        cls.output_flags(parser, settings, n_shards=25)

    def check(self) -> Job:
        """Refuse wrong arguments; take over unfinished work."""
        from talk2dino.features.captions import CaptionInput
        from talk2dino.features.extract import ImageExtraction

        chosen = self.keys or ["dino_features"]
        keys = tuple(key for key in IMAGE_KEYS if key in chosen)
        extraction = from_flags(ImageExtraction, self, keys=keys)
        return self.job(CaptionInput(self.ann_path, self.data_dir), extraction)

    def run(self, job: Job) -> int:
        """Extract split after split; 1 if more images failed than allowed.

        Only the first of several processes says so: when one exits with 1,
        `torch.distributed.run` ends the others at once, and the first has its report to write.
        """
        path = job.path
        if self.job_id is not None:  # the other jobs have lists of their own
            path = path.with_name(f"{path.stem}_{self.job_id + self.out_offset}{path.suffix}")
        failures = self.extract(job, path.with_name(f"{path.name}.failed.txt"))
        if not job.leads or len(failures) <= job.max_failures:
            return DONE
        print(
            f"error: {len(failures)} failures are more than --max_failures {job.max_failures}; "
            "everything else is written",
            file=sys.stderr,
        )
        return FAILED


class ExtractText(ExtractionCommand):
    """Extract text features of the captions with a frozen text encoder."""

    script = "text_features_extraction.py"
    example = "--ann_path ../coco2014_b14/val.pth"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the published flags and ours."""
        cls.own_flags(parser, "ann_path")
        settings = "features.text:TextExtraction"
        dense = ("dense=extract_dense_out", "second_last=extract_second_last_dense_out")
        names = ("model", "weights=text_weights", "device", "batch_size", *dense)
        add_flags(parser, settings, *names)
        cls.output_flags(parser, settings, n_shards=10)

    def check(self) -> Job:
        """Refuse wrong arguments; take over unfinished work."""
        from talk2dino.features.captions import CaptionInput
        from talk2dino.features.text import TextExtraction

        data = CaptionInput(self.ann_path, need_images=False)
        return self.job(data, from_flags(TextExtraction, self))

    def run(self, job: Job) -> None:
        """Encode split after split."""
        self.extract(job)


def default_workers() -> int:
    """Processes that read images: one per core that this one has, but for its own."""
    return max(1, min(16, core_share() - 1))


def _report_written(features: FeatureFile, files: Sequence[Path], keys: Sequence[str]) -> None:
    """Say what was written where."""
    where = str(files[0]) if len(files) == 1 else f"{files[0]} ... {files[-1].name}"
    images = features.num_images
    if files[0].suffix == ".tar":  # one member per caption
        images = len(features.caption_rows.unique())
    print(f"{where}: {images} images, {len(features.caption_rows)} captions")
    if images < features.num_images:
        lone = features.num_images - images
        print(f"  {lone} images without captions have no place in shards")
    columns = {**features.image_features, **features.caption_features}
    for key in keys:
        if key in columns:
            dtype = str(columns[key].dtype).removeprefix("torch.")
            print(f"  {key} {tuple(columns[key].shape)} {dtype}")


def _report_failures(failures: Sequence[str], path: Path) -> None:
    """Name the failed images on stderr, and all of them in a text file."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    text = "".join(f"{line}\n" for line in failures)
    write_text(path, text, errors="backslashreplace")
    print(f"{len(failures)} images failed and were left out:", file=sys.stderr)
    print(f"{few_lines(failures, SHOWN_FAILURES)}\nAll of them: {path}", file=sys.stderr)
