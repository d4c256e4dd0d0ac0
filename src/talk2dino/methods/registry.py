"""From names of models to methods; a new method is one more line of METHODS."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talk2dino.config import build, check_name, split_names

if TYPE_CHECKING:
    import torch

    from talk2dino.benchmarks.table import Benchmark
    from talk2dino.methods.base import Method
    from talk2dino.predict import Model
    from talk2dino.segmenter import Segmenter

METHODS = {
    "talk2dino.method:Talk2DinoMethod": ("vitb", "vitl", "dinov3_vitb", "dinov3_vitl", "toy"),
    "ovsegmentor.method:OVSegmentorMethod": tuple(
        f"ovsegmentor_{size}" for size in ("toy", "vitb", "vits")
    ),
    "clip_attention:ClipAttentionMethod": tuple(
        f"{method}_{size}"
        for method in ("maskclip", "maskclip_reduced", "sclip", "clearclip", "naclip", "clip")
        for size in ("vitb", "toy")
    ),
    "proxyclip:ProxyClipMethod": (
        *("proxyclip_vitb", "proxyclip_vitl", "proxyclip_vith", "proxyclip_vitb_dinov2"),
        *("proxyclip_toy", "proxyclip_toy_dinov2"),
    ),
    "clip_dinoiser:ClipDinoiserMethod": ("clip_dinoiser", "clip_dinoiser_toy"),
    "freeda.method:FreeDAMethod": ("freeda_vitl", "freeda_toy"),
}
"""Class below talk2dino.methods -> the names of its models. Naming one imports its method only."""

MODEL_NAMES = tuple(name for names in METHODS.values() for name in names)
"""All models that have a name."""
DEFAULT_MODEL = "vitb"
"""Where a command line names none."""
RESUMED_MODEL = "ovsegmentor_vitb"
"""Of `--resume` without `--model`: the published demo that has this flag has no other."""


def load_segmenter(
    name: str,
    weights: str | None = None,
    *,
    benchmark: str | None = None,
    vocabulary: str | Path | Sequence[str] | None = None,
    pooling: str = "max",
    device: str | torch.device = "cpu",
    **settings: Any,
) -> Segmenter:
    """Load any method by the name of a model.

    Args:
        name: one of MODEL_NAMES, or a recipe, folder, file or repository of Talk2DINO.
        weights: a file, a folder or `seeded:<n>`; None for the model's own.
        benchmark: key of a benchmark or the YAML file of a data set, whose options, vocabulary and
            protocol the segmenter then has; None for those of a user's pictures.
        vocabulary: words by which classes are looked for when `query` is asked for their names: a
            text file, or its lines, `name; alias; alias`; see `vocabularies.read_word_lists`.
        pooling: how the words of a class are put together: "max", the best one, or "lse".
        device: where to put it.
        settings: options of the method, such as `pamr=False`; see `--help` of `evaluate`. And
            `refine`: names of refinements with commas, such as "pamr,propagation"; `protocol`:
            "native", or "unified" for sizes and words that all methods share; `short_side`,
            `window`, `stride` and `stitch`: sizes in place of the protocol's.

    Returns:
        A segmenter with `query`, for `talk2dino.label_map`.

    Raises:
        ValueError: an unknown name, benchmark, setting or pooling, or weights of another model; a
            benchmark that the protocol or vocabulary is not for.
        FileNotFoundError, RuntimeError: weights that are missing, or cannot be downloaded.
    """
    from talk2dino.benchmarks.table import find_benchmark

    method = find_method(name, settings | ({} if weights is None else {"weights": weights}))
    row = None if benchmark is None else method.benchmark(find_benchmark(benchmark))
    method = method.for_pictures(background=False) if row is None else method.on(row)
    return _load_with_words(method, vocabulary, pooling, device, row)


def load_model(
    name: str,
    weights: str | None = None,
    *,
    vocabulary: str | Path | Sequence[str] | None = None,
    pooling: str = "max",
    device: str | torch.device = "cpu",
    **settings: Any,
) -> Model:
    """A model of any method that segments pictures by words; see `talk2dino.predict.Model`.

    Args:
        name, weights, vocabulary, pooling, device, settings: as in `load_segmenter`.
    """
    from talk2dino.predict import Model

    method = find_method(name, settings | ({} if weights is None else {"weights": weights}))
    how = (vocabulary, pooling, device)
    plain = _load_with_words(method.for_pictures(background=False), *how)
    cleaned = _load_with_words(method.for_pictures(background=True), *how, loaded=plain)
    return Model(plain, cleaned, method.demo.threshold, method.model)


def _load_with_words(
    method: Method,
    vocabulary: str | Path | Sequence[str] | None,
    pooling: str,
    device: str | torch.device,
    row: Benchmark | None = None,
    loaded: Segmenter | None = None,
) -> Segmenter:
    """A segmenter with the protocol and the words of a benchmark, or of a user's pictures; the
    words may be those of a vocabulary."""
    from talk2dino.devices import resolve_device
    from talk2dino.pictures.vocabularies import read_word_lists
    from talk2dino.segmenter import POOLINGS

    if loaded is None:
        method.check()
    check_name("pooling", pooling, POOLINGS)
    words = method.words(row)
    if vocabulary is not None:
        found = read_word_lists(vocabulary)
        if row is not None:
            found.check_fits(row.key, len(row.classes) - row.background, row.background)
        words = found.class_words(words, pooling)
    segmenter: Any = method.load(resolve_device(str(device)), loaded)
    segmenter.words = words
    segmenter.protocol = method.demo.protocol if row is None else row.protocol
    return segmenter  # type: ignore[no-any-return]


def find_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of a model with its options; nothing is loaded, but what the Hub has is fetched.

    Args:
        name: one of MODEL_NAMES, the path of a Talk2DINO recipe or model YAML, or what
            `Talk2DINO.from_pretrained` takes: a folder, a file, a repository.
        settings: options of the method that are not at their default, and the protocol.

    Raises:
        ValueError: an unknown name, or an option that does not belong to the method.
        FileNotFoundError: the YAML file is not there.
    """
    from talk2dino.methods.base import adapted
    from talk2dino.refine.refinement import chosen_refinements
    from talk2dino.sizes import Sizes

    kind = method_class(name)
    settings = {n: str(v) if isinstance(v, Path) else v for n, v in (settings or {}).items()}
    protocol = settings.pop("protocol", "native")
    settings |= chosen_refinements(settings.pop("refine", None))
    named = {entry.name: settings.pop(entry.name, None) for entry in dataclasses.fields(Sizes)}
    sizes = build(Sizes, named, "sizes")
    known = option_names(kind)
    for option in settings:
        if option not in known:
            raise ValueError(
                f"{option} means nothing for {name}, whose options are {', '.join(known)}. "
                f"{owners_of(option)}"
            )
    options = build(kind.Options, settings, name)
    return adapted(kind.from_options(name, options), protocol, sizes)


def option_names(kind: type[Method]) -> list[str]:
    return [entry.name for entry in dataclasses.fields(kind.Options)]


def method_classes(names: Iterable[str]) -> list[type[Method]]:
    """The methods of models, each once, in the order of METHODS."""
    found = {method_class(name) for name in names}
    return [kind for place in METHODS if (kind := _load(place)) in found]


def method_class(name: str) -> type[Method]:
    """The method of a model's name, or of a path.

    Raises:
        ValueError: no method has a model of this name.
    """
    for place, names in METHODS.items():
        if name in names:
            return _load(place)
    for place in reversed(METHODS):  # a path: every method looks at it, Talk2DINO last
        if (kind := _load(place)).claims(name):
            return kind
    known = [*MODEL_NAMES, "or a folder, a file, owner/name"]
    begin = [full for full in MODEL_NAMES if full.startswith(name)]
    similar = sorted(begin, key=lambda full: "toy" in full)[:1] or MODEL_NAMES
    check_name("model", name, known, similar=similar)
    raise AssertionError("check_name accepts only what was handled above")


def _load(place: str) -> type[Method]:
    module, _, name = place.partition(":")
    kind: type[Method] = getattr(import_module(f"talk2dino.methods.{module}"), name)
    return kind


def owners_of(option: str) -> str:
    """Which models have an option, as a sentence."""
    owners = [
        n for place, names in METHODS.items() if option in option_names(_load(place)) for n in names
    ]
    return f"It is an option of {', '.join(owners)}." if owners else "No method has such an option."


def split_models(text: str) -> list[str]:
    """Names with commas between them, each once; a file or folder may have commas in its path.

    Raises:
        ValueError: no name at all.
    """
    names = [text] if Path(text).exists() else [word.strip() for word in split_names(text)]
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
