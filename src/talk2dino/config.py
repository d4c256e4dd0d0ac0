"""Settings: frozen dataclasses read from YAML strictly; a key nobody reads cannot exist."""

import contextlib
import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar, cast

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


def first_few(values: Iterable[Any], count: int = 3) -> str:
    """`a, b, c, ... (7 in all)`: for messages about many things."""
    values = list(values)
    listed = ", ".join(map(str, values[:count]))
    return listed if len(values) <= count else f"{listed}, ... ({len(values)} in all)"


def split_names(text: str) -> list[str]:
    """The parts between commas, also those of Chinese, Japanese and Arabic keyboards."""
    return re.split("[,\uff0c\u3001\u060c\ufe50\ufe51\uff64]", text)


def build(cls: type[T], values: Mapping[str, Any], source: str, exact: bool = False) -> T:
    """Make the dataclass `cls` from a mapping, strictly.

    Args:
        cls: a dataclass whose fields have simple types, lists, tuples and mappings of them, or are
            other dataclasses.
        values: field name -> value, as read from YAML; another dataclass is a mapping, nothing, or
            built already.
        source: file name for the messages.
        exact: a number in quotes is text, and no number is infinite.

    Raises:
        ValueError: an unknown key or a missing one, a value of the wrong type, or one the dataclass
            refuses.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: expected 'key: value' lines, found {values!r}")
    hints = typing.get_type_hints(cls)
    fields: Any = dataclasses.fields(cls)  # type: ignore[arg-type]
    known, checked = [f.name for f in fields], {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(
                f"{source}: unknown key {key!r}.{_suggestion(str(key), known)} "
                f"Known: {', '.join(known)}."
            )
        checked[key] = _typed(value, hints[key], f"{source}: {key}", exact)
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [f"'{name}:'" for name in needed if name not in checked]:
        raise ValueError(f"{source}: {', '.join(missing)} {'are' if missing[1:] else 'is'} missing")
    with naming(source):
        return cls(**checked)


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """Begin what a ValueError says with the name of a file."""
    try:
        yield
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


def _typed(value: Any, hint: Any, where: str, exact: bool) -> Any:
    """`value` as the annotated type; YAML's `1e-4` (a string) counts as a number unless `exact`."""
    union = isinstance(hint, types.UnionType)
    allowed = typing.get_args(hint) if union else (hint,)
    if value is None and types.NoneType in allowed:
        return None
    for kind in allowed:
        if kind is Any or (dataclasses.is_dataclass(kind) and type(value) is kind):
            return value
        if dataclasses.is_dataclass(kind):
            return build(cast(type, kind), {} if value is None else value, where, exact)
        outer = typing.get_origin(kind) or kind
        if outer in (list, tuple) and isinstance(value, list | tuple):
            return _typed_items(value, kind, where, exact)
        if isinstance(value, dict) and (outer is dict or typing.is_typeddict(kind)):
            return _typed_values(value, kind, where, exact)
    if isinstance(value, bool):
        if bool in allowed:
            return value
    elif int in allowed and isinstance(value, int):
        return value
    elif float in allowed and isinstance(value, int | float if exact else int | float | str):
        with contextlib.suppress(ValueError, OverflowError):
            if math.isfinite(number := float(value)) or not exact:
                return number
    elif str in allowed and isinstance(value, str) and not re.search("[\ud800-\udfff]", value):
        return value
    names = (getattr(kind, "__name__", str(kind)) for kind in allowed)
    wanted = " or ".join("null" if name == "NoneType" else name for name in names)
    raise ValueError(f"{where} must be {wanted}, got {value!r:.80}")


def _typed_items(value: Sequence[Any], hint: Any, where: str, exact: bool) -> Any:
    """A list or a tuple, of any length or of one type for each place."""
    kind, args = typing.get_origin(hint), typing.get_args(hint)
    several = kind is list or args[-1] is Ellipsis
    if not several and len(value) != len(args):
        raise ValueError(f"{where} must be a list of {len(args)}, got {value!r:.80}")
    hints = [args[0]] * len(value) if several else args
    pairs = enumerate(zip(value, hints, strict=True))
    return kind(_typed(item, inner, f"{where}[{place}]", exact) for place, (item, inner) in pairs)


def _typed_values(value: Mapping[Any, Any], hint: Any, where: str, exact: bool) -> dict[Any, Any]:
    """A mapping, of one type or with one for each key that is known."""
    if typing.is_typeddict(hint):
        known = typing.get_type_hints(hint)
        return {k: _typed(v, known.get(k, Any), f"{where}.{k}", exact) for k, v in value.items()}
    of_key, of_value = typing.get_args(hint)
    return {
        _typed(k, of_key, f"{where}: a key", exact): _typed(v, of_value, f"{where}.{k}", exact)
        for k, v in value.items()
    }


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


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Which settings are other ones, in words; nothing if all are as wanted."""
    return "; ".join(
        f"{key} was {found.get(key)!r}, now {wanted.get(key)!r}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    )


def reason(error: BaseException) -> str:
    """The first line of an error's text, or the name of its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def optional_module(name: str, advice: str) -> Any:
    """A module of a library that is not required; without it, ImportError with `advice`."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(advice) from error


def check_at_least(smallest: int, **values: int) -> None:
    """Raise ValueError for a value below the smallest that can work, by its name."""
    for name, value in values.items():
        if value < smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {value}")


def check_between(lowest: float, highest: float, **values: float) -> None:
    """Raise ValueError for a value outside of [lowest, highest], or infinite, by its name."""
    for name, value in values.items():
        if not lowest <= value <= highest or math.isinf(value):
            raise ValueError(f"{name} must lie in [{lowest}, {highest}], got {value}")
