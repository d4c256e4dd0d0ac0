"""The comparison figure of papers: image, ground truth, and a column per method, for chosen images.

Made from saved predictions; every picture of it is a file of its own, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from talk2dino.benchmarks.pictures import palette_picture
from talk2dino.files import atomic_path, check_writable
from talk2dino.report.examples import (
    Example,
    Legend,
    Maps,
    draw_rows,
    paint_example,
    palette_of,
    read_maps,
)
from talk2dino.report.runs import EvaluatedRun, by_benchmark, find_runs, methods

_ALL = 256
"""Of the classes that occur; a label map holds no more."""


@dataclass(frozen=True)
class FigureOptions:
    """What a figure shows and where it goes."""

    output: Path
    """The PNG; its single pictures go into the folder `<stem>_files` beside it."""
    images: Sequence[str]
    """File names without their ending, or <benchmark>/<name> where several have the image."""
    methods: Sequence[str] = ()
    """Labels of the report, names of models, or result files without their ending; none: all."""
    data_root: Path | None = None
    """Where the images and labels are now (default: where they were evaluated)."""
    overwrite: bool = False
    """Replace a figure that is there."""

    def __post_init__(self) -> None:
        if self.output.suffix.lower() != ".png":
            raise ValueError(f"the figure {self.output} must be named *.png.")
        if not self.images:
            raise ValueError("a figure needs images: --images a,b,c")

    @property
    def files(self) -> Path:
        """Folder of the single pictures."""
        return self.output.with_name(f"{self.output.stem}_files")


@dataclass(frozen=True)
class _Row:
    """One image of one benchmark."""

    image: str
    """Path below the data root."""
    name: str
    """What the files of its pictures begin with."""
    runs: list[EvaluatedRun]
    """One per method."""


def write_figure(places: Sequence[str | Path], options: FigureOptions) -> list[Path]:
    """Draw the figure, and write its pictures one by one: label maps in the data set's palette.

    Args:
        places: result files, or folders that hold them.
        options: see there.

    Returns:
        the files that were written, the figure first.

    Raises:
        FileNotFoundError, ValueError: no such results, image, method or prediction; two of them
            with the name.
        FileExistsError: there is a figure already and `overwrite` is false.
    """
    check_writable(options.output, options.overwrite)
    groups = by_benchmark(runs := find_runs(places)[0])
    wanted = options.methods or methods(runs)
    rows = [_find_row(groups, image, wanted) for image in options.images]
    examples: list[Example] = []
    pictures: dict[str, Image.Image] = {}
    for row in rows:
        maps = read_maps(row.image, row.runs, options.data_root)
        _check_complete(row, maps)
        examples.append(paint_example(row.image, row.runs, maps, _ALL))
        pictures |= _single_pictures(row, maps)
    labels = [run.label for run in rows[0].runs]
    figure = draw_rows([("", shown) for shown in _share_legends(rows, examples)], labels)
    files = {options.output: figure} | {options.files / n: p for n, p in pictures.items()}
    options.files.mkdir(parents=True, exist_ok=True)
    for path, picture in files.items():
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")
    return list(files)


def _find_row(groups: Mapping[str, list[EvaluatedRun]], image: str, wanted: Sequence[str]) -> _Row:
    """The image and the runs of the only benchmark that has both the image and all methods."""
    found: dict[str, str] = {}
    names: dict[str, str] = {}
    for key, runs in groups.items():
        counts = next((run.counts for run in runs if run.counts is not None), None)
        paths = [] if counts is None else [PurePosixPath(path) for path in counts["images"]]
        called = [p for p in paths if image in (str(p), p.stem, f"{key}/{p.stem}")]
        if len(called) > 1:
            raise ValueError(
                f"{key} has several images {image!r}: say {' or '.join(map(str, called))}."
            )
        for path in called:
            found[key] = str(path)
            alone = [p.stem for p in paths].count(path.stem) == 1
            names[key] = path.stem if alone else "_".join(path.with_suffix("").parts)
    if not found:
        raise ValueError(
            f"no image {image!r} among the results on {', '.join(groups)}. Images are named by "
            "their files without the ending; the .npz of a result lists them."
        )
    runs_of = {key: [_matching(groups[key], name) for name in wanted] for key in found}
    fitting = [key for key, runs in runs_of.items() if all(runs)]
    if not fitting:
        key = next(iter(runs_of))
        pairs = zip(wanted, runs_of[key], strict=True)
        missing = ", ".join(name for name, matching in pairs if not matching)
        known = ", ".join(run.label for run in groups[key])
        raise ValueError(f"{key}, which has the image {image!r}, lacks {missing}. Known: {known}.")
    if len(fitting) > 1:
        choices = " or ".join(f"{key}/{PurePosixPath(found[key]).stem}" for key in fitting)
        raise ValueError(f"several benchmarks have the image {image!r}: say {choices}.")
    (key,) = fitting
    for method, some in zip(wanted, runs_of[key], strict=True):
        if len(some) > 1:
            stems = ", ".join(run.path.stem for run in some)
            raise ValueError(f"{method!r} has several results on {key}: name one of {stems}.")
    return _Row(found[key], f"{key}_{names[key]}", [run for some in runs_of[key] for run in some])


def _matching(runs: Sequence[EvaluatedRun], name: str) -> list[EvaluatedRun]:
    """The run of this label or file, or all of this model."""
    one = [run for run in runs if name in (run.label, run.path.stem)]
    return one or [run for run in runs if run.result["model"] == name]


def _check_complete(row: _Row, maps: Maps) -> None:
    if maps.image is None or maps.truth is None:
        raise ValueError(" ".join(maps.trouble))
    for run, labels in zip(row.runs, maps.predictions, strict=True):
        if labels is None:
            raise ValueError(
                f"{run.label} has no prediction of {row.image} ({run.path.name}): evaluate with "
                "--save_predictions DIR."
            )
        if labels.shape != maps.image.shape[:2]:
            raise ValueError(
                f"the prediction of {run.label} is {labels.shape}, and {row.image} "
                f"{maps.image.shape[:2]}: the data has changed since. Evaluate again."
            )


def _share_legends(rows: Sequence[_Row], examples: Sequence[Example]) -> list[Example]:
    """One legend below the rows of a benchmark that stand together, in place of one per row."""
    shown = []
    entries: dict[Legend, None] = {}
    for number, (row, example) in enumerate(zip(rows, examples, strict=True)):
        entries |= dict.fromkeys(example.legend)
        following = rows[number + 1].runs if number + 1 < len(rows) else None
        if following == row.runs:
            shown.append(dataclasses.replace(example, legend=[]))
        else:
            shown.append(dataclasses.replace(example, legend=list(entries)))
            entries = {}
    return shown


def _single_pictures(row: _Row, maps: Maps) -> dict[str, Image.Image]:
    """File names to the picture itself, and to label maps of as many pixels."""
    assert maps.image is not None and maps.truth is not None  # see _check_complete
    palette = palette_of(row.runs[0])[: len(row.runs[0].classes)]
    found = {f"{row.name}_image.png": Image.fromarray(maps.image)}
    names = ["truth", *(run.path.stem for run in row.runs)]
    for name, labels in zip(names, [maps.truth, *maps.predictions], strict=True):
        assert labels is not None
        found[f"{row.name}_{name}.png"] = palette_picture(labels, palette)
    return found
