"""From names of models to methods; a new method is one more entry of METHODS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from talk2dino.benchmarks.method import Method
from talk2dino.config import check_name
from talk2dino.methods.options import ModelOptions
from talk2dino.methods.ovsegmentor.checkpoints import is_converted
from talk2dino.methods.ovsegmentor.method import OVSegmentorMethod
from talk2dino.methods.talk2dino.hub.folder import FILE_SUFFIXES
from talk2dino.methods.talk2dino.hub.load import is_repository
from talk2dino.methods.talk2dino.method import RECIPE_SUFFIXES, Talk2DinoMethod

METHODS: tuple[type[Talk2DinoMethod] | type[OVSegmentorMethod], ...] = (
    Talk2DinoMethod,
    OVSegmentorMethod,
)
"""Each with NAMES, OPTIONS and `from_options`; see docs/extending.md."""

MODEL_NAMES = tuple(name for method in METHODS for name in method.NAMES)
"""All models that have a name."""


def find_method(name: str, options: ModelOptions | None = None) -> Method:
    """The method of a model with its options; nothing is loaded, but what the Hub has is fetched.

    Args:
        name: one of MODEL_NAMES, the path of a Talk2DINO recipe or model YAML, or what
            `Talk2DINO.from_pretrained` takes: a folder, a file, a repository.
        options: those that mean nothing for this method are ignored; see `unused_options`.

    Raises:
        ValueError: an unknown name; the known ones are listed.
        FileNotFoundError: the YAML file is not there.
    """
    return _kind(name).from_options(name, options or ModelOptions())


def unused_options(name: str, options: ModelOptions) -> list[str]:
    """The given options that mean nothing for a model."""
    return [option for option in options.given() if option not in _kind(name).OPTIONS]


def split_models(text: str) -> list[str]:
    """Names with commas between them, each once; a file or folder may have commas in its path.

    Raises:
        ValueError: no name at all.
    """
    names = [text] if Path(text).exists() else [word.strip() for word in text.split(",")]
    found = list(dict.fromkeys(name for name in names if name))
    if not found:
        raise ValueError(f"no model named. Known: {', '.join(MODEL_NAMES)}.")
    return found


def split_weights(values: list[str] | None, models: list[str]) -> Mapping[str, str]:
    """Which weights belong to which model.

    Args:
        values: `seeded:<n>` for all models; a file or folder for the only model; or
            `<model>=<file, folder or seeded:<n>>`. None or empty for the defaults.
        models: names.

    Raises:
        ValueError: one file for several models, or weights of a model that is not evaluated.
    """
    found: dict[str, str] = {}
    for value in values or []:
        name, equals, place = value.partition("=")
        if equals and name in models:
            found[name] = place
        elif equals and name in MODEL_NAMES:
            raise ValueError(f"--weights {value}: {name} is none of --model {','.join(models)}.")
        elif len(models) > 1 and not value.startswith("seeded:"):
            raise ValueError(
                f"--weights {value}: there are several models. Say whose they are: "
                f"--weights {models[0]}={value}"
            )
        else:
            found |= dict.fromkeys(models, value)
    return found


def _kind(name: str) -> type[Talk2DinoMethod] | type[OVSegmentorMethod]:
    for method in METHODS:
        if name in method.NAMES:
            return method
    path = Path(name)
    if is_converted(path):
        raise ValueError(
            f"{name} holds an OVSegmentor. Name its size: --model "
            f"{'|'.join(OVSegmentorMethod.NAMES)} --weights {name}"
        )
    suffixes = (*RECIPE_SUFFIXES, *FILE_SUFFIXES)
    if path.exists() or path.suffix.lower() in suffixes or is_repository(name):
        return Talk2DinoMethod
    known = [*MODEL_NAMES, "or a folder, a file, owner/name"]
    check_name("model", name, known, similar=list(MODEL_NAMES))
    raise AssertionError("check_name accepts only what was handled above")
