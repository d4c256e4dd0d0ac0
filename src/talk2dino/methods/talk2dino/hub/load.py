"""From a name, a folder, a file or a repository to a model that is ready to segment."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import ENDPOINT
from torch import nn

from talk2dino.backbones.seeded import PREFIX
from talk2dino.backbones.text import check_text, load_text, text_from_state
from talk2dino.backbones.vision import check_vision, load_vision, vision_from_state
from talk2dino.config import build, check_name
from talk2dino.files import file_sha256, find_in_checkout
from talk2dino.methods.talk2dino.config import MODEL_FIELDS, SegmenterConfig, read_segmenter_config
from talk2dino.methods.talk2dino.hub.fetch import FetchOptions, fetch_folder, hub_address
from talk2dino.methods.talk2dino.hub.layout import (
    FILE_SUFFIXES,
    PROJECTION,
    FoundModel,
    ModelParts,
    find_weights,
    identify_projection,
    identify_text,
    identify_vision,
    read_folder_config,
    read_model,
    split_parts,
)
from talk2dino.methods.talk2dino.hub.published import (
    HUB_FILES,
    PUBLISHED,
    TOY,
    TOY_THRESHOLD,
    PublishedModel,
    default_threshold,
    demo_threshold,
    short_name,
    toy_config,
)
from talk2dino.methods.talk2dino.projection import ProjectionConfig, projection_from_state
from talk2dino.methods.talk2dino.segmenter import PARTS, Talk2DinoSegmenter, build_segmenter
from talk2dino.training.job import read_summary

logger = logging.getLogger(__name__)

_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HOSTS = rf"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)|{re.escape(ENDPOINT)}"
_ADDRESS = re.compile(rf"(?:{_HOSTS})/({_REPO.pattern})")
_NAMES = ", ".join([TOY, *PUBLISHED])


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model and where it came from."""

    segmenter: Talk2DinoSegmenter
    """The models and the options of inference."""
    background_threshold: float
    """Threshold that `background=True` stands for."""
    origin: str
    """The name, path or repository it was loaded from."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Summary of its training, as `train.py` writes it; empty if there is none."""
    as_loaded: Mapping[str, Any] = field(default_factory=dict)
    """Part -> fingerprint of its weights when they were loaded; see `changed`."""

    def __post_init__(self) -> None:
        if not self.as_loaded:
            prints = {part: _fingerprint(getattr(self.segmenter, part)) for part in PARTS}
            object.__setattr__(self, "as_loaded", prints)

    def changed(self, part: str) -> bool:
        """Whether one of `PARTS` was trained, replaced or overwritten since it was loaded."""
        return bool(_fingerprint(getattr(self.segmenter, part)) != self.as_loaded[part])

    @property
    def is_untrained(self) -> bool:
        """Whether the projection is a drawn one, as it was drawn."""
        drawn = self.segmenter.config.projection_weights.startswith(PREFIX)
        return drawn and not self.changed("projection")


def _fingerprint(part: nn.Module) -> dict[str, tuple[tuple[int, ...], int]]:
    """Name -> shape and sum of the bits of every tensor, the same on every device."""
    return {
        name: (tuple(value.shape), int(value.detach().contiguous().view(torch.int32).sum()))
        for name, value in part.state_dict().items()
        if value.dtype is torch.float32
    }


def load_model(
    name_or_path: str,
    device: str | torch.device = "cpu",
    config: str | Path | None = None,
    fetch: FetchOptions | None = None,
) -> LoadedModel:
    """Load a model; see `Talk2DINO.from_pretrained`.

    Args:
        name_or_path: a short name, a folder, a file or a repository.
        device: where to put it.
        config: recipe of a projection alone, if the file does not tell.
        fetch: how to reach the Hub.
    """
    found = find_model(name_or_path, config, fetch)
    try:
        segmenter = load_segmenter(found.config, found.whole, device)
    except RuntimeError as error:
        if found.origin not in PUBLISHED or found.whole is not None:
            raise
        raise RuntimeError(
            f"{error} Or get the whole model: {_source(PUBLISHED[found.origin])}"
        ) from error
    return LoadedModel(segmenter, found.background_threshold, found.origin, found.training)


def check_segmenter(config: SegmenterConfig, whole: Path | None) -> None:
    """Raise for unknown models and for files that are missing or damaged; loads nothing.

    Raises:
        ValueError, FileNotFoundError: what is wrong, and what to do.
    """
    if whole is None:
        config.check()
        return
    read_model(whole)  # of safetensors, the tensors stay on the disk
    included = (str(whole), str(whole.parent))
    vision, text = (
        None if weights in included else weights
        for weights in (config.vision_weights, config.text_weights)
    )
    check_vision(config.vision_model, vision)
    check_text(config.text_model, text)


def load_segmenter(
    config: SegmenterConfig, whole: Path | None, device: str | torch.device = "cpu"
) -> Talk2DinoSegmenter:
    """The segmenter of a configuration; `whole` is the file with its weights, if there is one.

    Where that holds the projection only, the configuration names the weights of the others.
    """
    if whole is None:
        return build_segmenter(config, device)
    source = str(whole)
    parts = split_parts(read_model(whole), source)
    projection = projection_from_state(config.projection, parts.projection, source)
    if parts.vision:
        vision = vision_from_state(config.vision_model, parts.vision, source)
        text: Any = text_from_state(config.text_model, parts.text, source)
    else:
        vision = load_vision(config.vision_model, config.vision_weights)
        text = load_text(config.text_model, config.text_weights)
    return Talk2DinoSegmenter(vision, text, projection, config).to(device)


def find_model(
    name_or_path: str, config: str | Path | None = None, fetch: FetchOptions | None = None
) -> FoundModel:
    """What `load_model` would load; a model of the Hub is downloaded if it is not there yet."""
    if not name_or_path.strip():
        raise ValueError(
            f"the model's name is empty: {name_or_path!r}. Give a folder, a file, a repository "
            f"(owner/name), or one of {_NAMES}."
        )
    fetch, path = fetch or FetchOptions(), Path(name_or_path)
    if config is not None and not path.is_file():
        raise ValueError(f"config= belongs to the file of a projection, not to {name_or_path!r}.")
    if name_or_path == TOY:
        return FoundModel(toy_config(), TOY_THRESHOLD, TOY)
    if name_or_path in PUBLISHED:
        return _find_published(name_or_path, fetch)
    if path.is_dir():
        return _find_folder(path)
    if path.is_file():
        return _find_file(path, config)
    if address := _ADDRESS.match(name_or_path):
        raise ValueError(
            f"a repository is given as owner/name, not by its address {name_or_path}: "
            f"from_pretrained({address[1]!r})."
        )
    if is_repository(name_or_path):
        folder = fetch_folder(name_or_path, fetch, _advice_for_repo(name_or_path))
        return dataclasses.replace(_find_folder(folder), origin=name_or_path)
    if "/" in name_or_path or "\\" in name_or_path or path.suffix in FILE_SUFFIXES:
        raise FileNotFoundError(
            f"there is no file or folder {name_or_path}. Give one, a repository (owner/name), or "
            f"one of {_NAMES}."
        )
    if name_or_path.startswith("ovsegmentor"):
        raise ValueError(
            f"{name_or_path} is no Talk2DINO. OVSegmentor is on the command line (python -m "
            "talk2dino segment, evaluate) and in the page (app)."
        )
    known = [TOY, *PUBLISHED]
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
    path = Path(place)
    if path.is_dir():
        return True
    return path.is_file() and any(name.startswith(PROJECTION) for name in read_model(path))


def _find_folder(folder: Path) -> FoundModel:
    """A folder that `save_pretrained` wrote, or one with the files of a published model."""
    path = find_weights(folder)
    found = read_folder_config(folder)
    if found is None:
        found = _identified(split_parts(read_model(path), str(path)), path)
    return dataclasses.replace(found, origin=str(folder), whole=path)


def _find_file(path: Path, config: str | Path | None) -> FoundModel:
    """A projection's file (the backbones come from timm and open_clip), or a whole model's.

    Which backbones a projection belongs to is said by `config`, by the summary that `train.py`
    writes beside it, or by the file itself if it is one of the published ones.
    """
    state = read_model(path)
    if config is None and any(name.startswith(PROJECTION) for name in state):
        return _identified(split_parts(state, str(path)), path)
    summary = read_summary(path.with_suffix(".json"))
    published = _published_projection(path)
    if config is not None:
        chosen = read_segmenter_config(config, projection_weights=str(path))
    elif summary.get("settings"):
        chosen = _config_from_summary(summary, path)
    elif published is not None:
        chosen = published.config(str(path))
    else:
        found_config = identify_projection(state, str(path))
        raise ValueError(
            f"{path} is a projection into {found_config.dino_embed_dim} dimensions, but of which "
            "backbone is not known: pass config=, its recipe of configs/."
        )
    return FoundModel(chosen, demo_threshold(chosen), str(path), summary)


def _find_published(name: str, fetch: FetchOptions) -> FoundModel:
    """A short name: a folder or file in weights/, else the Hub or its cache."""
    model = PUBLISHED[name]
    folder = find_in_checkout(Path("weights") / name)
    projection = find_in_checkout(Path("weights") / model.projection_file)
    if folder.is_dir():
        found = _find_folder(folder)
    elif projection.is_file():
        check_projection(projection, model)
        found = FoundModel(model.config(str(projection)), model.background_threshold, name)
    else:
        found = _find_folder(fetch_folder(model.repo, fetch, _advice(name)))
    return dataclasses.replace(found, origin=name, background_threshold=model.background_threshold)


def check_projection(path: Path, model: PublishedModel) -> None:
    """Raise ValueError if a file under a published name has another content."""
    expected = model.projection_sha256
    if expected is not None and (found := file_sha256(path)) != expected:
        raise ValueError(
            f"{path} is not the published file: its SHA-256 is {found[:12]}..., expected "
            f"{expected[:12]}.... Download it again (weights/README.md), or, if it is your own "
            f"training, load it by its path: from_pretrained({str(path)!r})."
        )


def _published_projection(path: Path) -> PublishedModel | None:
    """The published model a projection's file belongs to, by its content or else its name."""
    digest = file_sha256(path)
    for model in PUBLISHED.values():
        if digest == model.projection_sha256:
            return model
    for model in PUBLISHED.values():
        if path.name == model.projection_file:
            if model.projection_sha256 is not None:
                logger.warning(
                    "%s has a published name, but another content; it is used with %s",
                    *(path, model.vision_model),
                )
            return model
    return None


def _config_from_summary(summary: Mapping[str, Any], path: Path) -> SegmenterConfig:
    """The models that a training's summary names."""
    source = path.with_suffix(".json").name
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
        projection=build(ProjectionConfig, values, source),
        projection_weights=str(path),
        **{field.name: models[field.name] for field in MODEL_FIELDS if field.name in models},
    )


def _identified(parts: ModelParts, path: Path) -> FoundModel:
    """What a file without a configuration of ours holds, from its tensors."""
    source = str(path)
    if not parts.vision:
        raise ValueError(
            f"{path} holds the projection only, and no config.json of save_pretrained says which "
            "backbones it belongs to."
        )
    projection = identify_projection(parts.projection, source)
    config = SegmenterConfig(
        projection=projection,
        projection_weights=source,
        vision_model=identify_vision(parts.vision, source),
        vision_weights=source,
        text_model=identify_text(parts.text, source),
        text_weights=source,
    )
    threshold = default_threshold(projection.dino_embed_dim)
    return FoundModel(config, threshold, source, whole=path)


def _source(model: PublishedModel) -> str:
    files = " and ".join(HUB_FILES)
    return f"{files} of {hub_address(model.repo)}/tree/main, into one folder."


def _advice(name: str) -> str:
    model = PUBLISHED[name]
    return (
        f"In weights/{name}/ of the checkout the name {name!r} finds it; with "
        f"{model.projection_file} alone in weights/ (see weights/README.md), it takes the "
        "backbones from timm and open_clip. 'toy' needs no files."
    )


def _advice_for_repo(repo: str) -> str:
    name = short_name(repo)
    if name is not None:
        return _advice(name)
    published = ", ".join(model.repo for model in PUBLISHED.values())
    return f"There is no local folder of that name either. Published models: {published}."
