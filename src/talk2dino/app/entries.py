"""From names on the command line to the models that the page offers; nothing is loaded here."""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from talk2dino import text, vision
from talk2dino.app.models import Abilities, Facts, Loaded, ModelEntry
from talk2dino.checkpoints import read_state_dict
from talk2dino.config import check_name
from talk2dino.files import find_in_checkout, load_torch
from talk2dino.hub.fetch import FetchOptions
from talk2dino.hub.folder import CONFIG, FILE_SUFFIXES, find_weights, read_folder_config
from talk2dino.hub.load import check_projection, load_model
from talk2dino.hub.published import PUBLISHED, TOY, TOY_THRESHOLD, default_threshold, toy_config
from talk2dino.registry.models import MODEL_NAMES, find_method
from talk2dino.registry.options import ModelOptions
from talk2dino.registry.talk2dino import Talk2DinoMethod
from talk2dino.seeded import PREFIX
from talk2dino.segmenter import build_segmenter
from talk2dino.segmenter_config import SegmenterConfig
from talk2dino.toy.scene import CLASS_NAMES

UNTRAINED = (
    "“{}” has random, untrained weights: everything works as with a real model, but the colours "
    "mean nothing."
)
DRAWN_WORLD = "“{}” has seen nothing but drawn pictures of {}."

_OTHERS = tuple(known for known in MODEL_NAMES if known not in Talk2DinoMethod.NAMES)


def find_entry(name: str, device: torch.device) -> ModelEntry:
    """A model by its name on the command line.

    Args:
        name: what `named_entry` takes, or a model of another method of the registry: its name, or
            `<name>=<folder, file or seeded:<n>>`.
        device: where it runs.

    Raises:
        ValueError, FileNotFoundError: there is no such model, or its weights are missing or
            damaged. Whether the Hub has a repository is seen when it is loaded.
    """
    model, equals, weights = name.partition("=")
    if equals and not Path(name).exists():
        check_name("model with weights (<name>=<weights>)", model, _OTHERS)
    if model not in _OTHERS:
        return named_entry(name, device)
    method = find_method(model, ModelOptions(weights=weights if equals else None))
    method.check()
    notice = None
    if weights.startswith(PREFIX):
        notice = UNTRAINED.format(model)
    elif model.endswith(f"_{TOY}"):
        notice = DRAWN_WORLD.format(model, ", ".join(CLASS_NAMES))
    facts = Facts(method.demo.threshold, notice)
    abilities = Abilities(
        refine=False,
        windows=method.demo.windows,
        groups=method.demo.groups,
        redraw=False,  # the mean of several windows' backgrounds does not tell the scores
        thresholds=(0.0, 1.0),
        scores="class scores",
    )
    return ModelEntry(name, lambda: Loaded(method.load(device), facts), facts, abilities)


def named_entry(name: str, device: torch.device, fetch: FetchOptions | None = None) -> ModelEntry:
    """A model by its short name, folder, file or repository; see `Talk2DINO.from_pretrained`.

    Raises:
        ValueError, FileNotFoundError: as `find_entry`.
    """
    fetch = fetch or FetchOptions()
    _check_named(name)

    def load() -> Loaded:
        loaded = load_model(name, device, fetch=fetch)
        notice = _notice(name, loaded.segmenter.config)
        return Loaded(loaded.segmenter, Facts(loaded.background_threshold, notice))

    return ModelEntry(name, load, _known_facts(name, fetch))


def config_entry(name: str, config: SegmenterConfig, device: torch.device) -> ModelEntry:
    """A model by its configuration, as `demo.py --config` takes it."""
    threshold = default_threshold(config.projection.dino_embed_dim)
    if config.projection_weights.startswith(PREFIX):
        threshold = TOY_THRESHOLD
    facts = Facts(threshold, _notice(name, config))
    return ModelEntry(name, lambda: Loaded(build_segmenter(config, device), facts), facts)


def _known_facts(name: str, fetch: FetchOptions) -> Facts | None:
    """What is known of a model without its weights; None where they alone tell."""
    if name == TOY:
        return Facts(TOY_THRESHOLD, _notice(name, toy_config()))
    folder = _local_folder(name, fetch)
    config = read_folder_config(folder) if folder is not None else None
    notice = _notice(name, config.segmenter) if config is not None else None
    published = [m for short, m in PUBLISHED.items() if name in (short, m.repo)]
    if published and (name in PUBLISHED or folder is None):
        return Facts(published[0].background_threshold, notice)
    return Facts(config.background_threshold, notice) if config is not None else None


def _local_folder(name: str, fetch: FetchOptions) -> Path | None:
    """The folder of a model that is on this machine, perhaps in the cache of the Hub."""
    folder = find_in_checkout(Path("weights") / name) if name in PUBLISHED else Path(name)
    if folder.is_dir():
        return folder
    if folder.is_file() or not _is_repository(name):
        return None
    cached = try_to_load_from_cache(name, CONFIG, fetch.cache_dir, fetch.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _check_named(name: str) -> None:
    """Raise for a name, path or file that `load_model` would refuse, as far as it is local."""
    path = Path(name)
    if name == TOY:
        return
    if name in PUBLISHED:
        _check_published(name)
    elif path.is_dir():
        _check_folder(path)
    elif path.is_file():
        _check_file(path)
    elif not _is_repository(name):
        if "/" in name or "\\" in name or path.suffix in FILE_SUFFIXES:
            raise FileNotFoundError(
                f"there is no file or folder {name}. Give one, a repository (owner/name), or one "
                f"of {', '.join([TOY, *PUBLISHED, *_OTHERS])}."
            )
        known = [TOY, *PUBLISHED, *_OTHERS]
        check_name("model", name, [*known, "or a folder, a file, owner/name"], similar=known)


def _check_published(name: str) -> None:
    model = PUBLISHED[name]
    folder = find_in_checkout(Path("weights") / name)
    projection = find_in_checkout(Path("weights") / model.projection_file)
    if folder.is_dir():
        _check_folder(folder)
    elif projection.is_file():
        check_projection(projection, model)


def _check_folder(folder: Path) -> None:
    _check_file(find_weights(folder))
    found = read_folder_config(folder)
    if found is not None:
        config, included = found.segmenter, str(folder)
        weights = (config.vision_weights, config.text_weights)
        vision_weights, text_weights = (None if file == included else file for file in weights)
        vision.check_vision(config.vision_model, vision_weights)
        text.check_text(config.text_model, text_weights)


def _check_file(path: Path) -> None:
    """Raise ValueError for a file that cannot be read; its tensors stay on the disk."""
    if path.suffix == ".safetensors":
        read_state_dict(path)
    else:
        load_torch(path, mmap=True)


def _is_repository(name: str) -> bool:
    """Whether a name can be one of the Hub, `owner/name`."""
    if name.count("/") != 1 or name.endswith(FILE_SUFFIXES):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _notice(name: str, config: SegmenterConfig) -> str | None:
    """What the colours of a model are worth, if they mean little."""
    if config.projection_weights.startswith(PREFIX):
        return UNTRAINED.format(name)
    if config.vision_model == TOY:
        return DRAWN_WORLD.format(name, ", ".join(CLASS_NAMES))
    return None
