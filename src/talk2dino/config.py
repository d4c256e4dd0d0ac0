"""Settings: frozen dataclasses read from YAML strictly; a key nobody reads cannot exist."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import os
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from talk2dino.textfiles import read_yaml

ACTIVATIONS = ("tanh", "relu", "sigmoid")
HEAD_WEIGHTINGS = ("static", "conditioned")
MODEL_CLASS_NAMES = ("ProjectionLayer", "VisualProjectionLayer", "DoubleMLP", "CLIPLastLayer")
ALIGNMENT_STRATEGIES = (
    "max_score",
    "sampled_attn_map",
    "weighted_avg",
    "sum",
    "mean",
    "max-row_sum",
    "nucleus-sampling",
)
LOSS_NAMES = ("infonce", "triplet")

T = TypeVar("T")


def check_name(
    kind: str, name: str, known: Iterable[str], similar: Iterable[str] | None = None
) -> str:
    """Return `name` if it is one of `known`; otherwise raise ValueError with a suggestion.

    Args:
        kind: what is named, for the message.
        name: what was given.
        known: names to accept and to list.
        similar: names to suggest from, if there are more than can be listed.
    """
    known = list(known)
    if name in known:
        return name
    raise ValueError(
        f"unknown {kind} {name!r}. Known: {', '.join(known)}.{_suggestion(name, similar or known)}"
    )


def split_names(text: str) -> list[str]:
    """The parts between commas, also those of Chinese, Japanese and Arabic keyboards."""
    return re.split("[,\uff0c\u3001\u060c\ufe50\ufe51\uff64]", text)


@dataclass(frozen=True)
class ProjectionConfig:
    """The `model:` section: the trained map between the two spaces (paper section 3.2)."""

    act: str | None = "tanh"
    """Activation between the linear layers: tanh, relu, sigmoid, or null for none."""
    hidden_layer: bool | int = False
    """Number of hidden layers; true means 1."""
    cosine: bool = True
    """L2-normalise both sides before the scores."""
    dino_embed_dim: int = 1024
    """Width D of the patch embeddings: 768 for ViT-B, 1024 for ViT-L."""
    clip_embed_dim: int = 512
    """Width E of the text embeddings."""
    hidden_embed_dim: int | None = None
    """Width of VisualProjectionLayer's hidden layer; null means clip_embed_dim."""
    num_attn_head: int = 16
    """Number H of attention heads of the backbone: 12 for ViT-B, 16 for ViT-L."""
    weight_attn_heads: str | None = None
    """Learn how much each head counts: null, static, or conditioned (on the CLS token)."""
    alignment_strategy: str = "max_score"
    """How per-head image embeddings meet a text; see talk2dino.methods.talk2dino.alignment."""
    alpha: float = 0.6
    """Share of the score mass that nucleus-sampling keeps."""
    keep_cls: bool = False
    """With token-level text, keep position 0."""
    keep_end_seq: bool = False
    """With token-level text, keep the end-of-text position."""
    starting_checkpoint: str | None = None
    """Weights to start the training from."""
    model_class: str = "ProjectionLayer"
    """ProjectionLayer, VisualProjectionLayer, DoubleMLP or CLIPLastLayer."""

    def __post_init__(self) -> None:
        if self.act is not None:
            check_name("activation (act)", self.act, ACTIVATIONS)
        if self.weight_attn_heads is not None:
            check_name("weight_attn_heads", self.weight_attn_heads, HEAD_WEIGHTINGS)
        check_name("alignment_strategy", self.alignment_strategy, ALIGNMENT_STRATEGIES)
        check_name("model_class", self.model_class, MODEL_CLASS_NAMES)
        _at_least(1, dino_embed_dim=self.dino_embed_dim, clip_embed_dim=self.clip_embed_dim)
        _at_least(1, num_attn_head=self.num_attn_head)
        _at_least(0, hidden_layer=int(self.hidden_layer))
        if self.hidden_embed_dim is not None:
            _at_least(1, hidden_embed_dim=self.hidden_embed_dim)
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {self.alpha}")
        if self.weight_attn_heads and self.model_class != "ProjectionLayer":
            raise ValueError(
                f"weight_attn_heads works with ProjectionLayer, not {self.model_class}"
            )

    @property
    def num_hidden_layers(self) -> int:
        """Number of (activation, linear) pairs after the first linear layer."""
        return int(self.hidden_layer)


@dataclass(frozen=True)
class TrainConfig:
    """The `train:` section. The published recipe is lr 1e-4, infonce, 100 epochs of batch 128."""

    lr: float = 1e-4
    """Learning rate."""
    ltype: str = "infonce"
    """Loss: infonce or triplet."""
    num_epochs: int = 100
    """Passes over the captions."""
    batch_size: int = 128
    """Captions per step."""
    margin: float = 0.2
    """Margin of the triplet loss."""
    max_violation: bool = True
    """Triplet loss: only the hardest negative of each row and column counts."""
    shuffle: bool = True
    """Draw a new order of the captions every epoch."""
    save_best_model: bool = True
    """Keep the weights of the epoch with the lowest validation loss instead of the last ones."""

    def __post_init__(self) -> None:
        check_name("loss (ltype)", self.ltype, LOSS_NAMES)
        _at_least(1, num_epochs=self.num_epochs, batch_size=self.batch_size)
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if not 0 <= self.margin < math.inf:
            raise ValueError(f"margin must be finite and not negative, got {self.margin}")


@dataclass(frozen=True)
class FeatureConfig:
    """The `features:` section: the two frozen models a projection is trained between."""

    vision_model: str = "dinov2_vitb14_reg"
    """Vision backbone; see talk2dino.backbones.vision."""
    vision_weights: str | None = None
    """`pretrained`, a path, or `seeded:<n>`; null means the model's default."""
    text_model: str = "ViT-B/16"
    """Text encoder; see talk2dino.backbones.text."""
    text_weights: str | None = None
    """`pretrained`, a path, or `seeded:<n>`; null means the model's default."""
    resize_dim: int = 448
    """Short side of a training image, in pixels."""
    crop_dim: int = 448
    """Side of the central square that is kept, in pixels."""

    def __post_init__(self) -> None:
        _at_least(1, resize_dim=self.resize_dim, crop_dim=self.crop_dim)


@dataclass(frozen=True)
class Recipe:
    """One file of `configs/`: everything that defines a trained projection."""

    model: ProjectionConfig
    """The map and its alignment."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it is trained."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """What it is trained on."""
    path: Path = Path()
    """Where the recipe was read from."""


def load_recipe(path: str | Path) -> Recipe:
    """Read a file of `configs/`: sections `model` (required), `train` and `features`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or a section or key is unknown or has a wrong value.
    """
    path = Path(path)
    sections = read_yaml(path)
    known = ("model", "train", "features")
    for name in sections:
        if name not in known:
            raise ValueError(
                f"{path.name}: unknown section {name!r}. Known: {', '.join(known)}."
                f"{_suggestion(str(name), known)}"
            )
    if "model" not in sections:
        raise ValueError(f"{path.name}: the section 'model:' is missing")
    return Recipe(
        model=build(ProjectionConfig, sections["model"], path.name),
        train=build(TrainConfig, sections.get("train") or {}, path.name),
        features=build(FeatureConfig, sections.get("features") or {}, path.name),
        path=path,
    )


def build(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Make the dataclass `cls` from a mapping, strictly.

    Args:
        cls: a dataclass whose fields have simple types, or are other dataclasses.
        values: field name -> value, as read from YAML; another dataclass is built already.
        source: file name for the messages.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or one the dataclass refuses.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: expected 'key: value' lines, found {values!r}")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    checked = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(
                f"{source}: unknown key {key!r}.{_suggestion(str(key), known)} "
                f"Known: {', '.join(known)}."
            )
        checked[key] = _typed(value, hints[key], f"{source}: {key}")
    try:
        return cls(**checked)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def environment_number(name: str, default: int, least: int = 0) -> int:
    """The whole number in an environment variable; `default` if it is not set, or empty.

    Raises:
        ValueError: it holds something else, or less than `least`; the message names it.
    """
    text = os.environ.get(name, "").strip()
    if text and (not text.isdecimal() or len(text) > 9 or int(text) < least):
        raise ValueError(
            f"the environment variable {name} is {text!r}, not a whole number from {least} on. "
            "Unset it, or start with python -m torch.distributed.run."
        )
    return int(text or default)


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type; YAML's `1e-4` (a string) counts as a number."""
    if dataclasses.is_dataclass(value) and type(value) is hint:
        return value
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in allowed:
        return None
    if isinstance(value, bool):
        if bool in allowed:
            return value
    elif int in allowed and isinstance(value, int):
        return value
    elif float in allowed and isinstance(value, int | float | str):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    elif str in allowed and isinstance(value, str):
        return value
    wanted = " or ".join("null" if t is types.NoneType else t.__name__ for t in allowed)
    raise ValueError(f"{where} must be {wanted}, got {value!r}")


def as_texts(
    texts: str | Iterable[str], form: str = "texts are given as 'cat' or ['cat', 'dog']"
) -> list[str]:
    """One text or several, as a list: a string is never taken for its letters.

    Raises:
        ValueError: something among them that is no text; begins with `form`.
    """
    several = isinstance(texts, Iterable) and not isinstance(texts, str | bytes)
    given = list(texts) if several else [cast(str, texts)]
    for text in given:
        if not isinstance(text, str):
            raise ValueError(f"{form}, found {text!r}{' in it' if several else ''}.")
    return given


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _at_least(smallest: int, **values: int) -> None:
    for name, value in values.items():
        if value < smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {value}")


def field_docs(kind: type) -> dict[str, str]:
    """The strings under the fields of a dataclass, those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for entry, text in itertools.pairwise(body.body):
            if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
                value = text.value if isinstance(text, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[entry.target.id] = " ".join(value.value.split())
    return found
