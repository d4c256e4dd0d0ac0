"""What a result may hold: the type of every field, checked whenever one is read.

Results come from other people's machines, and their fields reach pages, plots and file names.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, TypedDict

import numpy as np

from talk2dino.benchmarks.data.labels import LabelRules

_LARGEST = 1e15
"""No number of a result is as large, nor infinite."""


class TimingFields(TypedDict, total=False):
    """See `results.timing_fields`."""

    images: int
    seconds: float
    images_per_second: float
    shared_with: list[str]
    device: str
    processes: int
    peak_memory_mib: float
    peak_gpu_memory_mib: float | None


class Settings(TypedDict, total=False):
    """What decides the counts; see `job.run_settings`."""

    segmenter: dict[str, Any]


class Needed(TypedDict):
    """The fields of every result; see `results.make_result`."""

    benchmark: str
    title: str
    model: str
    pamr: bool
    bg_thresh: float | None
    num_images: int
    mIoU: float | None
    mAcc: float | None
    aAcc: float | None
    mIoU_interval: tuple[float | None, float | None]
    published: float | None
    per_class: dict[str, float | None]
    data_root: str


class Result(Needed, total=False):
    """A whole result; a field that an earlier version did not write is None."""

    readme_name: str | None
    published_source: str | None
    uniform_windows: int | None
    with_bg_clean: bool | None
    per_class_accuracy: dict[str, float | None] | None
    boundary_mIoU: float | None
    per_class_boundary_iou: dict[str, float | None] | None
    seam_error: float | None
    seam_pairs: int | None
    classes: list[str] | None
    palette: list[tuple[int, int, int]] | None
    has_background: bool | None
    label_rules: LabelRules | None
    reduce_zero_label: bool | None
    unlabelled_background: bool | None
    counts: str | None
    predictions: str | None
    settings: Settings | None
    versions: dict[str, str] | None
    timing: TimingFields | None
    command: list[str] | None
    finished: str | None


class WrongField(ValueError):
    """A result that holds something else than a result may."""


def check_fields(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The known fields of a result, None for those that are not there.

    Raises:
        WrongField: a field is missing or has another type; names it.
    """
    try:
        _check(content, Result, "")
        if not re.fullmatch(r"\w[\w.-]*", content["benchmark"], re.ASCII):
            raise _wrong("benchmark", "a name, no path", content["benchmark"])
        palette = content.get("palette") or []
        if len(palette) > 65535 or not all(0 <= value <= 255 for row in palette for value in row):
            raise _wrong("palette", "at most 65535 colours of numbers from 0 to 255", palette)
    except WrongField as error:
        raise WrongField(f"{source} is no result of an evaluation: {error}") from None
    return {name: content.get(name) for name in typing.get_type_hints(Result)}


def check_counts(counts: Mapping[str, np.ndarray], result: Mapping[str, Any]) -> None:
    """Raise ValueError unless the arrays beside a result have its images and classes."""
    images, classes = result["num_images"], len(result["per_class"])
    shapes = {
        **dict.fromkeys(("images", "labels"), ((images,), "U")),
        **dict.fromkeys(("intersect", "union", "label_area"), ((images, classes), "iu")),
        "confusion": ((classes, classes), "iu"),
    }
    optional = {f"boundary_{name}": shapes["union"] for name in ("intersect", "union")}
    shapes |= {name: shape for name, shape in optional.items() if name in counts}
    for name, (shape, kinds) in shapes.items():
        found = counts.get(name)
        if found is None or found.shape != shape or found.dtype.kind not in kinds:
            what = "missing" if found is None else f"{found.dtype} {found.shape}"
            raise ValueError(f"{name} must have the shape {shape}, as in the JSON; it is {what}")
    for path in map(str, (*counts["images"], *counts["labels"])):
        parts = PureWindowsPath(path).parts
        if ".." in parts or PureWindowsPath(path).drive or PurePosixPath(path).is_absolute():
            raise ValueError(f"{path!r} is no path below the data root")


def _check(value: Any, hint: Any, where: str) -> None:
    """Raise WrongField unless JSON data has the type of an annotation."""
    kind, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return
    if typing.is_typeddict(hint) or dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        for name, inner in typing.get_type_hints(hint).items():
            path = f"{where}.{name}" if where else name
            if name in value:
                _check(value[name], inner, path)
            elif name in getattr(hint, "__required_keys__", [name]):
                raise WrongField(f"{path} is missing")
    elif kind is types.UnionType:
        if value is not None:
            _check(value, args[0], where)
    elif kind is dict:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        for name, item in value.items():
            _check(name, str, f"a name in {where}")
            _check(item, args[1], f"{where}.{name}")
    elif kind in (list, tuple):
        if args[-1] is Ellipsis:
            kind = list
        if not isinstance(value, list) or (kind is tuple and len(value) != len(args)):
            raise _wrong(where, f"a list of {len(args)}" if kind is tuple else "a list", value)
        for place, item in enumerate(value):
            _check(item, args[place if kind is tuple else 0], f"{where}[{place}]")
    elif hint is str:
        if not isinstance(value, str) or re.search("[\ud800-\udfff]", value):
            raise _wrong(where, "text", value)
    elif hint is bool:
        if not isinstance(value, bool):
            raise _wrong(where, "true or false", value)
    elif isinstance(value, bool) or not isinstance(value, int if hint is int else int | float):
        raise _wrong(where, "a whole number" if hint is int else "a number", value)
    elif not -_LARGEST < value < _LARGEST:  # not a number is neither
        raise _wrong(where, "a finite number", value)


def _wrong(where: str, wanted: str, value: Any) -> WrongField:
    return WrongField(f"{where} must be {wanted}, found {ascii(value)[:80]}")
