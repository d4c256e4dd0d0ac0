"""From a name, a folder, a file or a repository to a model that can be loaded."""

import dataclasses
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from talk2dino.backbones.seeded import PREFIX
from talk2dino.config import build, check_between, check_name, reason
from talk2dino.files import check_finished, file_sha256, find_in_checkout
from talk2dino.methods.talk2dino.config import MODEL_FIELDS, SegmenterConfig, read_segmenter_config
from talk2dino.methods.talk2dino.hub.layout import identify, read_parts
from talk2dino.methods.talk2dino.projection import ProjectionConfig, identify_projection
from talk2dino.textfiles import read_json
from talk2dino.training.job import read_summary

logger = logging.getLogger(__name__)

INCLUDED = "included"
"""In place of the name of weights: they are in the folder."""
FILE_SUFFIXES = (".pth", ".pt", ".safetensors", ".bin")
"""Of files with weights."""
WEIGHT_FIELDS = ("projection_weights", "vision_weights", "text_weights")
"""Of a `SegmenterConfig`."""
_OLD_WEIGHTS = "pytorch_model.bin"
_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")

WEIGHTS, CONFIG = ("model.safetensors", "config.json")
"""What a model's repository holds, and all that is downloaded of it."""

TOY = "toy"
TOY_THRESHOLD = 0.52  # an untrained projection never reaches the published 0.55


@dataclass(frozen=True)
class PublishedModel:
    """One of the authors' models."""

    repo: str
    """Repository on the Hugging Face Hub with the whole model."""
    recipe: str
    """Stem of its recipe in configs/, and of the authors' file with the projection alone."""
    sha256: str | None = None
    """Checksum of that file; None where it is not recorded."""

    def config(self, projection_weights: str) -> SegmenterConfig:
        """The segmenter, with backbones that timm and open_clip download."""
        recipe = f"configs/{self.recipe}.yaml"
        return read_segmenter_config(recipe, projection_weights=projection_weights)


PUBLISHED = {
    "vitb": PublishedModel(
        "lorebianchi98/Talk2DINO-ViTB",
        "vitb_mlp_infonce",
        "5f6efcc520f22916ecf3dfdfb01d6f57e701c1c2e1feda71a80d89e3cd752f0f",
    ),
    "vitl": PublishedModel("lorebianchi98/Talk2DINO-ViTL", "vitl_mlp_infonce"),
    "dinov3_vitb": PublishedModel(
        "lorebianchi98/Talk2DINOv3-ViTB",
        "dinov3_vitb_mlp_infonce",
        "6fc5ce7a05d8f1c829c174d87b861da05399cf0bfe50de3711ac940115d85fcc",
    ),
    "dinov3_vitl": PublishedModel("lorebianchi98/Talk2DINOv3-ViTL", "dinov3_vitl_mlp_infonce"),
}
"""Short name -> model."""
MODELS = {name: f"configs/{model.recipe}.yaml" for name, model in PUBLISHED.items()}
MODELS[TOY] = "configs/toy.yaml"
"""Name of a Talk2DINO -> its recipe."""


def short_name(repo: str) -> str | None:
    """The short name of one of the authors' repositories; None for any other."""
    return next((name for name, model in PUBLISHED.items() if model.repo == repo), None)


def demo_threshold(config: SegmenterConfig) -> float:
    """Background threshold for pictures that belong to no benchmark."""
    untrained = config.projection_weights.startswith(PREFIX)
    return TOY_THRESHOLD if untrained else default_threshold(config.projection.dino_embed_dim)


def default_threshold(width: int) -> float:
    """Published background threshold for a backbone of width D: lower for the large models."""
    return 0.54 if width >= 1024 else 0.55


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
        check_between(0, 1, background_threshold=self.background_threshold)

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
    if name_or_path == TOY:  # which needs no file, and knows nothing
        chosen = read_segmenter_config(MODELS[TOY], projection_weights=f"{PREFIX}0")
        return FoundModel(chosen, TOY_THRESHOLD, TOY)
    if name_or_path in PUBLISHED:
        return _find_published(name_or_path, download)
    if path.is_dir():
        return _find_folder(path)
    if path.is_file():
        return _find_file(path, config)
    if not is_repository(name_or_path):
        if "/" in name_or_path or "\\" in name_or_path or path.suffix in FILE_SUFFIXES:
            raise FileNotFoundError(
                f"there is no file or folder {name_or_path}. Give one, a repository (owner/name), "
                f"or one of {', '.join(known)}."
            )
        check_name("model", name_or_path, [*known, "or a folder, a file, owner/name"], known)
    return _find_remote(name_or_path, download)


def is_repository(name: str) -> bool:
    """Whether a name has the form `owner/name` and no ending of a file."""
    return _REPO.fullmatch(name) is not None and not name.endswith(FILE_SUFFIXES)


def parse_folder_config(
    content: Mapping[str, Any], source: str, origin: str, weights: str
) -> FoundModel:
    """The content of a `config.json` of ours; weights that are included are the folder's.

    Raises:
        ValueError: names what is missing, unknown or of another type.
    """
    values = content["segmenter"]
    if isinstance(values, Mapping):
        included = {name: weights for name in WEIGHT_FIELDS if values.get(name) == INCLUDED}
        values = {"projection": {}, **values, **included}
    found = {
        "config": values,
        "background_threshold": content.get("background_threshold"),
        "origin": origin,
        "training": content.get("training") or {},
    }
    return build(FoundModel, found, source, exact=True)


def with_options(found: FoundModel, content: Mapping[str, Any]) -> FoundModel:
    """A model with the options and the threshold of another `config.json`.

    Raises:
        ValueError: it is damaged, or names other models.
    """
    weights = {name: getattr(found.config, name) for name in WEIGHT_FIELDS}
    if isinstance(own := content["segmenter"], Mapping):
        content = {**content, "segmenter": {**own, **weights}}
    given = parse_folder_config(content, found.origin, found.origin, "")
    for name in ("projection", "vision_model", "text_model"):
        if getattr(given.config, name) != getattr(found.config, name):
            raise ValueError(f"the configuration names another {name} than {found.origin} has.")
    return given


def _find_folder(folder: Path) -> FoundModel:
    """A folder that `save_pretrained` wrote, or one with the files of a published model.

    Of the authors' configuration nothing is needed: their weights tell the architecture.

    Raises:
        FileNotFoundError, ValueError: it has no weights, or a file is damaged.
    """
    held = [name for name in (WEIGHTS, _OLD_WEIGHTS) if (folder / name).is_file()]
    if not held:
        there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        raise FileNotFoundError(
            f"{folder} holds no {WEIGHTS}, but {', '.join(there[:6]) or 'nothing'}. Download that "
            "file completely; weights in several files are not read."
        )
    weights, path = str(folder / held[0]), folder / CONFIG
    check_finished(path)
    content = read_json(path, "Get it again.") if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no configuration, but a {type(content).__name__}.")
    if "segmenter" in content:
        return parse_folder_config(content, str(path), str(folder), weights)
    return dataclasses.replace(_find_file(Path(weights), None), origin=str(folder))


def _find_file(path: Path, config: str | Path | None) -> FoundModel:
    """A whole model's file, or a projection's (the backbones come from timm and open_clip).

    Which backbones a projection belongs to is said by `config`, by the summary that `train.py`
    writes beside it, or by the file itself if it is one of the published ones.
    """
    parts, source = read_parts(path), str(path)
    summary = {} if parts.vision else read_summary(path.with_suffix(".json"))
    if parts.vision:
        projection = identify_projection(parts.projection, source)
        vision, text = identify(parts, source)
        models: dict[str, Any] = dict.fromkeys(WEIGHT_FIELDS, source)
        models |= {"projection": projection, "vision_model": vision, "text_model": text}
        chosen = SegmenterConfig(**models)
    elif config is not None:
        chosen = read_segmenter_config(config, projection_weights=source)
    elif summary.get("settings"):
        chosen = _config_from_summary(summary, path)
    elif published := [
        *(m for m in PUBLISHED.values() if m.sha256 and m.sha256 == file_sha256(path)),
        *(m for m in PUBLISHED.values() if f"{m.recipe}.pth" == path.name),
    ]:
        chosen = published[0].config(source)
    else:
        found = identify_projection(parts.projection, source)
        raise ValueError(
            f"{path} is a projection into {found.dino_embed_dim} dimensions, but of which "
            "backbone is not known: pass config=, its recipe of configs/."
        )
    return FoundModel(chosen, demo_threshold(chosen), source, summary)


def _find_published(name: str, download: Mapping[str, Any]) -> FoundModel:
    """A short name: a folder or file in weights/, else the Hub or its cache."""
    model = PUBLISHED[name]
    folder = find_in_checkout(Path("weights") / name)
    projection = find_in_checkout(Path("weights") / f"{model.recipe}.pth")
    config = model.config(str(projection))
    threshold = demo_threshold(config)
    if folder.is_dir():
        found = _find_folder(folder)
    elif projection.is_file():
        if model.sha256 is not None and (digest := file_sha256(projection)) != model.sha256:
            raise ValueError(
                f"{projection} is not the published file: its SHA-256 is {digest[:12]}..., "
                f"expected {model.sha256[:12]}.... Download it again (weights/README.md), or, if "
                "it is your own training, load it by its path: "
                f"from_pretrained({str(projection)!r})."
            )
        found = FoundModel(config, threshold, name)
    else:
        found = _find_remote(model.repo, download)
    return dataclasses.replace(found, origin=name, background_threshold=threshold)


def _find_remote(repo: str, download: Mapping[str, Any]) -> FoundModel:
    if (name := short_name(repo)) is None:
        published = ", ".join(model.repo for model in PUBLISHED.values())
        advice = f"There is no local folder of that name either. Published models: {published}."
    else:
        advice = (
            f"In weights/{name}/ of the checkout the name {name!r} finds it; with "
            f"{PUBLISHED[name].recipe}.pth alone in weights/ (see weights/README.md), it "
            "takes the backbones from timm and open_clip. 'toy' needs no files."
        )
    return dataclasses.replace(_find_folder(fetch_folder(repo, advice, **download)), origin=repo)


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


def fetch_folder(repo: str, advice: str = "", **settings: Any) -> Path:
    """The local folder with a repository's weights and configuration, downloaded if need be.

    Both are of one commit. Nothing else of the repository is fetched, and none of its code runs.

    Args:
        repo: `owner/name`.
        advice: appended to errors: another way to get the same model.
        settings: of `huggingface_hub.hf_hub_download`: revision, token, cache_dir,
            local_files_only, force_download.

    Raises:
        ValueError: no such repository or revision, one without weights, or a damaged download.
        RuntimeError: no network; says which files to put where.
    """
    place, revision = settings.get("cache_dir"), settings.get("revision")
    cached = try_to_load_from_cache(repo, WEIGHTS, place, revision)
    if not settings.get("local_files_only") and not isinstance(cached, str):
        logger.warning("asking the Hub for %s; a whole model has about a gigabyte", repo)
    elif not isinstance(cached, str | None):  # the Hub once said that it is not there
        raise ValueError(f"no model {repo!r} on the Hub: it holds no {WEIGHTS}. {advice}")
    address = f"{ENDPOINT}/{repo}"
    refused = {
        GatedRepoError: f"it is gated: accept its conditions at {address} and pass token=",
        RepositoryNotFoundError: "it is not there, or private: then pass token=",
        RevisionNotFoundError: f"it has no revision {revision!r}",
        EntryNotFoundError: f"it holds no {WEIGHTS}",
    }
    try:
        path = Path(hf_hub_download(repo, WEIGHTS, **settings))
        commit = path.parent.name
        # Text if it is there, None if that is not known, else the Hub once said that it is not.
        if isinstance(try_to_load_from_cache(repo, CONFIG, place, commit), str | None):
            try:
                hf_hub_download(repo, CONFIG, **{**settings, "revision": commit})
            except EntryNotFoundError as error:  # the cache remembers it
                if isinstance(error, LocalEntryNotFoundError):  # the Hub could not be asked
                    raise
    except Exception as error:  # the network libraries raise what they raise
        for kind, why in refused.items():
            if isinstance(error, kind) and not isinstance(error, LocalEntryNotFoundError):
                raise ValueError(f"no model {repo!r} on the Hub: {why}. {advice}") from error
        raise RuntimeError(
            f"could not download {repo} ({reason(error.__cause__ or error)}). Where there is a "
            f"network, download {WEIGHTS} and {CONFIG} from {address}/tree/main into one folder, "
            f"and give that folder's path. {advice}".rstrip()
        ) from error
    blob = path.resolve()  # which the cache keeps under its checksum
    if _SHA256.fullmatch(blob.name) and (found := file_sha256(blob)) != blob.name:
        raise ValueError(
            f"{blob} is damaged: its SHA-256 is {found[:12]}..., published is {blob.name[:12]}.... "
            "Delete it and load again."
        )
    return path.parent
