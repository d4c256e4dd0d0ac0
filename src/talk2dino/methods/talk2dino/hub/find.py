"""From a name, a folder, a file or a repository to a model that can be loaded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talk2dino.config import build, check_name
from talk2dino.files import check_finished, file_sha256, find_in_checkout
from talk2dino.methods.talk2dino.config import MODEL_FIELDS, SegmenterConfig, read_segmenter_config
from talk2dino.methods.talk2dino.hub.fetch import fetch_folder
from talk2dino.methods.talk2dino.hub.layout import identify, read_parts
from talk2dino.methods.talk2dino.hub.published import (
    CONFIG,
    PUBLISHED,
    TOY,
    TOY_THRESHOLD,
    WEIGHTS,
    PublishedModel,
    default_threshold,
    demo_threshold,
    short_name,
    toy_config,
)
from talk2dino.methods.talk2dino.projection import ProjectionConfig, identify_projection
from talk2dino.textfiles import read_json
from talk2dino.training.job import read_summary

INCLUDED = "included"
"""In place of the name of weights: they are in the folder."""
FILE_SUFFIXES = (".pth", ".pt", ".safetensors", ".bin")
"""Of files with weights."""
WEIGHT_FIELDS = ("projection_weights", "vision_weights", "text_weights")
"""Of a `SegmenterConfig`."""
_OLD_WEIGHTS = "pytorch_model.bin"
_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class FoundModel:
    """A model before it is loaded; of a saved one, what its `config.json` says."""

    config: SegmenterConfig
    """The models and the options of inference."""
    background_threshold: float
    """Threshold that `background=True` stands for."""
    origin: str
    """The name, path or repository it was found by."""
    training: dict[str, Any] = field(default_factory=dict)
    """Summary of its training, as `train.py` writes it; empty if there is none."""

    def __post_init__(self) -> None:
        if not 0 <= self.background_threshold <= 1:
            raise ValueError(
                f"background_threshold lies between 0 and 1, got {self.background_threshold}"
            )

    def as_json(self) -> dict[str, Any]:
        """The content of `config.json`, which transformers reads too."""
        return {
            "architectures": ["Talk2DinoModel"],
            "model_type": "talk2dino",
            "background_threshold": self.background_threshold,
            "segmenter": dataclasses.asdict(self.config),
            "training": self.training,
        }


def find_model(name_or_path: str, config: str | Path | None = None, **download: Any) -> FoundModel:
    """What `Talk2DINO.from_pretrained` loads; what only the Hub has is downloaded.

    Args:
        name_or_path: a short name, a folder, a file or a repository.
        config: recipe of a projection alone, if the file does not tell.
        download: see `fetch_folder`.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: see `Talk2DINO.from_pretrained`.
    """
    path, known = Path(name_or_path), [TOY, *PUBLISHED]
    if not name_or_path.strip():
        raise ValueError(
            f"the model's name is empty: {name_or_path!r}. Give a folder, a file, a repository "
            f"(owner/name), or one of {', '.join(known)}."
        )
    if config is not None and not path.is_file():
        raise ValueError(f"config= belongs to the file of a projection, not to {name_or_path!r}.")
    if name_or_path == TOY:
        return FoundModel(toy_config(), TOY_THRESHOLD, TOY)
    if name_or_path in PUBLISHED:
        return _find_published(name_or_path, download)
    if path.is_dir():
        return _find_folder(path)
    if path.is_file():
        return _find_file(path, config)
    if is_repository(name_or_path):
        name = short_name(name_or_path)
        published = ", ".join(model.repo for model in PUBLISHED.values())
        advice = f"There is no local folder of that name either. Published models: {published}."
        folder = fetch_folder(name_or_path, _advice(name) if name else advice, **download)
        return dataclasses.replace(_find_folder(folder), origin=name_or_path)
    if "/" in name_or_path or "\\" in name_or_path or path.suffix in FILE_SUFFIXES:
        raise FileNotFoundError(
            f"there is no file or folder {name_or_path}. Give one, a repository (owner/name), or "
            f"one of {', '.join(known)}."
        )
    check_name("model", name_or_path, [*known, "or a folder, a file, owner/name"], similar=known)
    raise AssertionError("check_name accepts only what was handled above")


def is_repository(name: str) -> bool:
    """Whether a name has the form `owner/name` and no ending of a file."""
    return _REPO.fullmatch(name) is not None and not name.endswith(FILE_SUFFIXES)


def is_whole_model(place: str | Path) -> bool:
    """Whether a path is that of a folder, or of a file with more than a projection.

    Raises:
        ValueError: a damaged file.
    """
    return Path(place).is_dir() or (Path(place).is_file() and bool(read_parts(place).vision))


def find_weights(folder: Path) -> Path:
    """The file with a folder's weights.

    Raises:
        FileNotFoundError: there is none; says what is there instead.
    """
    for name in (WEIGHTS, _OLD_WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    raise FileNotFoundError(
        f"{folder} holds no {WEIGHTS}, but {', '.join(there[:6]) or 'nothing'}. Download that "
        "file completely; weights in several files are not read."
    )


def read_folder_config(folder: Path) -> FoundModel | None:
    """What `save_pretrained` wrote; None without a `config.json`, or with the published one.

    Of the authors' configuration nothing is needed: their weights tell the architecture.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / CONFIG
    check_finished(path)
    if not path.is_file():
        return None
    content = read_json(path, "Get it again.")
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no configuration, but a {type(content).__name__}.")
    if "segmenter" not in content:
        return None
    return parse_folder_config(content, str(path), folder)


def parse_folder_config(content: Mapping[str, Any], source: str, folder: Path) -> FoundModel:
    """The content of a `config.json` of ours; weights that are included are the folder's.

    Raises:
        ValueError: names what is missing, unknown or of another type.
    """
    values = content["segmenter"]
    if isinstance(values, Mapping):
        names = [name for name in WEIGHT_FIELDS if values.get(name) == INCLUDED]
        included = dict.fromkeys(names, str(find_weights(folder))) if names else {}
        values = {"projection": {}, **values, **included}
    found = {
        "config": values,
        "background_threshold": content.get("background_threshold"),
        "origin": str(folder),
        "training": content.get("training") or {},
    }
    return build(FoundModel, found, source, exact=True)


def _find_folder(folder: Path) -> FoundModel:
    """A folder that `save_pretrained` wrote, or one with the files of a published model."""
    path = find_weights(folder)
    found = read_folder_config(folder) or _identified(path)
    return dataclasses.replace(found, origin=str(folder))


def _find_file(path: Path, config: str | Path | None) -> FoundModel:
    """A projection's file (the backbones come from timm and open_clip), or a whole model's.

    Which backbones a projection belongs to is said by `config`, by the summary that `train.py`
    writes beside it, or by the file itself if it is one of the published ones.
    """
    parts = read_parts(path)
    if config is None and parts.vision:
        return _identified(path)
    summary = read_summary(path.with_suffix(".json"))
    if config is not None:
        chosen = read_segmenter_config(config, projection_weights=str(path))
    elif summary.get("settings"):
        chosen = _config_from_summary(summary, path)
    elif (published := _published_projection(path)) is not None:
        chosen = published.config(str(path))
    else:
        found = identify_projection(parts.projection, str(path))
        raise ValueError(
            f"{path} is a projection into {found.dino_embed_dim} dimensions, but of which "
            "backbone is not known: pass config=, its recipe of configs/."
        )
    return FoundModel(chosen, demo_threshold(chosen), str(path), summary)


def _find_published(name: str, download: Mapping[str, Any]) -> FoundModel:
    """A short name: a folder or file in weights/, else the Hub or its cache."""
    model = PUBLISHED[name]
    folder = find_in_checkout(Path("weights") / name)
    projection = find_in_checkout(Path("weights") / model.projection_file)
    threshold = default_threshold(model.width)
    if folder.is_dir():
        found = _find_folder(folder)
    elif projection.is_file():
        expected = model.projection_sha256
        if expected is not None and (digest := file_sha256(projection)) != expected:
            raise ValueError(
                f"{projection} is not the published file: its SHA-256 is {digest[:12]}..., "
                f"expected {expected[:12]}.... Download it again (weights/README.md), or, if it is "
                f"your own training, load it by its path: from_pretrained({str(projection)!r})."
            )
        found = FoundModel(model.config(str(projection)), threshold, name)
    else:
        found = _find_folder(fetch_folder(model.repo, _advice(name), **download))
    return dataclasses.replace(found, origin=name, background_threshold=threshold)


def _published_projection(path: Path) -> PublishedModel | None:
    """The published model a projection's file is of: by its content, or by its name."""
    digest = file_sha256(path)
    by_content = [model for model in PUBLISHED.values() if model.projection_sha256 == digest]
    by_name = [model for model in PUBLISHED.values() if model.projection_file == path.name]
    return next(iter((*by_content, *by_name)), None)


def _config_from_summary(summary: Mapping[str, Any], path: Path) -> SegmenterConfig:
    """The models that a training's summary names."""
    values = {
        name.removeprefix("model."): value
        for name, value in summary["settings"].items()
        if name.startswith("model.")
    }
    models = dict(summary.get("features") or {})
    for side in ("vision", "text"):  # what the features were really made with, if recorded
        recorded = (summary.get("trained_on") or {}).get(side) or {}
        for key in ("model", "weights"):
            if recorded.get(key) is not None:
                models[f"{side}_{key}"] = recorded[key]
    return SegmenterConfig(
        projection=build(ProjectionConfig, values, path.with_suffix(".json").name),
        projection_weights=str(path),
        **{field.name: models[field.name] for field in MODEL_FIELDS if field.name in models},
    )


def _identified(path: Path) -> FoundModel:
    """What a file without a configuration of ours holds, from its tensors."""
    parts, source = read_parts(path), str(path)
    projection = identify_projection(parts.projection, source)
    if not parts.vision:
        raise ValueError(
            f"{path} holds the projection only, and no config.json of save_pretrained says which "
            "backbones it belongs to."
        )
    vision, text = identify(parts, source)
    config = SegmenterConfig(
        projection=projection,
        projection_weights=source,
        vision_model=vision,
        vision_weights=source,
        text_model=text,
        text_weights=source,
    )
    return FoundModel(config, default_threshold(projection.dino_embed_dim), source)


def _advice(name: str) -> str:
    return (
        f"In weights/{name}/ of the checkout the name {name!r} finds it; with "
        f"{PUBLISHED[name].projection_file} alone in weights/ (see weights/README.md), it takes "
        "the backbones from timm and open_clip. 'toy' needs no files."
    )
