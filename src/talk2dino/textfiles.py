"""Text that people and other programs wrote: JSON, YAML and lists of names, each opened in one way.

UTF-8, or UTF-16 and UTF-32 with their marks; packed with gzip or not. Nothing is taken silently
when it is given twice, and no file can fill the memory or the stack beyond its own size.
"""

import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from talk2dino.config import check_name, first_few, naming
from talk2dino.files import check_file

MAX_YAML = 2**16
"""Bytes; the recipes of this project have less than 4,000."""
MAX_YAML_VALUES = 10_000
"""Values of a YAML text, those that aliases repeat included."""

_DEEPEST = 50
_GZIP = b"\x1f\x8b"
_SMALL, _RATIO = 2**24, 100  # no text shrinks to less than a hundredth, but for small ones


def read_text(path: str | Path, limit: int | None = None) -> str:
    """The characters of a text file, without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text, packed and damaged, or larger than `limit` bytes.
    """
    path = Path(path)
    check_file(path)
    if limit is not None and path.stat().st_size > limit:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {limit} are read")
    data = path.read_bytes()
    try:
        return decode_text(data)
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from error


def read_json(path: str | Path, advice: str = "") -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        advice: what to do if it cannot be used, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, not JSON, nested too deeply, or gives a key twice.
    """
    path = Path(path)
    check_file(path)
    return parse_json(path.read_bytes(), str(path), advice)


def parse_json(data: bytes | str, source: str, advice: str = "") -> Any:
    """JSON text as Python data; see `read_json`. `source` is named in messages."""
    advice = f". {advice}" if advice else ""
    if not data or data.isspace():
        raise ValueError(f"{source} is empty ({len(data)} bytes){advice}")
    try:
        text = decode_text(data) if isinstance(data, bytes) else data
        return json.loads(text, object_pairs_hook=_unique)
    except _Twice as error:
        raise ValueError(f"{source}: {error}{advice}") from error
    except ValueError as error:
        raise ValueError(f"{source} is not JSON ({error}){advice}") from error
    except RecursionError:
        raise ValueError(f"{source} is nested too deeply to be read{advice}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The content of a YAML file whose top level is a mapping.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no mapping, or what `parse_yaml` refuses.
    """
    content = parse_yaml(read_text(path, MAX_YAML), str(path))
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{path} must hold 'key: value' lines at its top level, found {found}")
    return content


def read_sections(path: str | Path, known: Iterable[str], required: str) -> dict[str, Any]:
    """The sections of a YAML file, of which one is required.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or a section is unknown or missing.
    """
    path = Path(path)
    sections = read_yaml(path)
    for name in sections:
        with naming(path.name):
            check_name("section", str(name), known)
    if required not in sections:
        raise ValueError(f"{path.name}: the section '{required}:' is missing")
    return sections


def parse_yaml(text: str, source: str) -> Any:
    """YAML text as plain Python data. `source` is named in messages.

    Raises:
        ValueError: not YAML, a key given twice, nested too deeply, or more than MAX_YAML_VALUES.
    """
    if len(text) > MAX_YAML:
        raise ValueError(f"{source} has {len(text)} characters; at most {MAX_YAML} are read")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _check_nodes(node)
        return None if node is None else loader.construct_document(node)
    except _Twice as error:
        raise ValueError(f"{source}: {error}") from error
    except RecursionError:
        raise ValueError(f"{source} is nested too deeply to be read") from None
    # Beside its own errors the library lets through those of int(), dates and look-ups.
    except (
        *(yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    ) as error:
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file with any line ends; see `read_text`."""
    return re.split(r"\r\n?|\n", read_text(path))


def read_names(path: str | Path, numbered: bool = False) -> list[str]:
    """The names of a list, one per line, without blanks around them; empty lines do not count.

    Args:
        path: a text file with any line ends, the last one there or not.
        numbered: a name's line is its number, so that an empty line before the last is an error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text, lists nothing, or lists a name twice.
    """
    lines = read_lines(path)
    names = [name for line in lines if (name := line.strip())]
    if not names:
        raise ValueError(f"{path} is empty: it lists no names. Write one on each line.")
    if numbered and not all(map(str.strip, lines[: len(names)])):
        raise ValueError(f"{path} has empty lines between the names, which are numbered by line.")
    check_once(names, str(path))
    return names


def check_once(names: Iterable[Any], source: str) -> None:
    """Raise ValueError if a name occurs more than once; says which."""
    twice = [f"{name} ({count} times)" for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{source} lists more than once: {first_few(twice)}. Leave each in once.")


def refuse_packed(path: str | Path) -> None:
    """Raise ValueError for a gzip file where records are looked up by their place."""
    with open(path, "rb") as file:
        if file.read(2) == _GZIP:
            raise ValueError(f"{path} is packed with gzip. Unpack it first: gunzip {path}")


class _Loader(yaml.SafeLoader):
    """Stops at brackets within brackets early: the library takes time by the square of them."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > _DEEPEST:
            raise RecursionError
        super().fetch_flow_collection_start(TokenClass)


class _Twice(ValueError):
    """A key is given twice."""


def decode_text(data: bytes) -> str:
    """Raises ValueError, to be continued after `the file is ...`."""
    if data.startswith(_GZIP):
        data = _unpacked(data)
    encoding = json.detect_encoding(data)
    try:
        return data.decode("utf-8" if encoding.endswith(("le", "be")) else encoding)  # a guess
    except UnicodeDecodeError as error:
        raise ValueError(f"no text in UTF-8 ({error.reason})") from error


def _unpacked(data: bytes) -> bytes:
    limit = _SMALL + _RATIO * len(data)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            text = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"packed with gzip and damaged ({error})") from error
    if len(text) > limit:
        raise ValueError(f"packed with gzip and has more than {limit} bytes. Unpack it first")
    return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        key = next(key for key, count in counts.items() if count > 1)
        raise _Twice(f"{key[:80]!r} is given twice. Keep one, or join the two")
    return content


def _check_nodes(root: yaml.Node | None) -> None:
    """Look at every value as often as it is used: an alias may stand for itself, or for many."""
    waiting, count = [root] if root else [], 1
    while waiting:
        node = waiting.pop()
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            lines: dict[Any, int] = {}
            for key, value in node.value:
                name, line = (key.tag, str(key.value)[:80]), key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and name in lines:
                    both = f"in lines {lines[name]} and {line}"
                    raise _Twice(f"{name[1]!r} is given twice, {both}. Keep one, or join the two")
                lines[name] = line
                inside += [key, value]
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        count += len(inside)
        if count > MAX_YAML_VALUES:
            raise ValueError(f"more than {MAX_YAML_VALUES} values, those of aliases included")
        waiting += inside
