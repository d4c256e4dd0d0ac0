"""Where the pixels of an image record come from: a file, a member of a tar, or the network."""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from PIL import Image

from talk2dino.pictures.images import decode_rgb, read_rgb

TIMEOUT = 20.0
"""Seconds without an answer after which a download counts as failed."""
ATTEMPTS = 2
"""Downloads are tried this often."""
MAX_DOWNLOAD = 256 * 2**20
"""Bytes after which a download is given up."""

_SPLIT_AND_YEAR = re.compile(r"(train|val|test)(2014|2017)")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image, not yet read. Exactly one of the fields beside `places` may be set."""

    places: tuple[str, ...]
    """Paths in the order they are tried, or one http(s) address."""
    member: tuple[int, int] | None = None
    """Offset and size in bytes inside the only place, a tar."""
    problem: str | None = None
    """Why there is no image, known before reading."""

    @property
    def is_url(self) -> bool:
        """Whether the image is on the network."""
        return _is_url(self.places[0])

    def exists(self) -> bool:
        """Whether there is something to read; addresses are believed."""
        if self.problem:
            return False
        return any(_is_url(place) or os.path.isfile(place) for place in self.places)

    def state(self) -> tuple[int, ...]:
        """What changes when the file does: size and time, and the place within it."""
        for place in self.places:
            if os.path.isfile(place):
                found = os.stat(place)
                return found.st_size, found.st_mtime_ns, *(self.member or ())
        return ()

    def read(self, least: int = 0) -> Image.Image:
        """Read and decode as RGB; for `least` see `read_rgb`.

        Raises:
            ValueError, OSError: missing, not reachable or not an image; the message says which.
        """
        if self.problem:
            raise ValueError(self.problem)
        if self.member:
            return decode_rgb(self._read_member(*self.member), self.places[0], least)
        for place in self.places:
            if _is_url(place):
                return decode_rgb(download(place), place, least)
            if os.path.isfile(place):
                return read_rgb(place, least)
        raise FileNotFoundError(f"not found; looked for {' and '.join(self.places)}")

    def _read_member(self, offset: int, size: int) -> bytes:
        with open(self.places[0], "rb") as file:
            file.seek(offset)
            return file.read(size)


def image_source(record: dict[str, Any], data_dir: str | Path) -> ImageSource:
    """Where the image of a COCO record is looked for.

    `data_dir/f` for the `file_name` f, then `data_dir/<split><year>/f` with split and year taken
    from f or from `coco_url`. An http(s) name is downloaded.

    Raises:
        ValueError: the record names no file.
    """
    for key in ("file_name", "coco_url"):
        if not isinstance(record.get(key) or "", str):
            raise ValueError(f"image {record.get('id')} has the {key!r} {record[key]!r}, not text")
    name = record.get("file_name") or _last_part(record.get("coco_url"))
    if not name:
        raise ValueError(f"image {record.get('id')} has neither a 'file_name' nor a 'coco_url'")
    if _is_url(name):
        return ImageSource((name,))
    places = [os.path.join(data_dir, name)]
    for text in (name, record.get("coco_url") or ""):
        found = _SPLIT_AND_YEAR.search(text)
        if found:
            places.append(os.path.join(data_dir, "".join(found.groups()), name))
            break
    return ImageSource(tuple(places))


def check_any_exists(sources: Sequence[ImageSource]) -> None:
    """Raise unless at least one image is there (stops looking at the first).

    Raises:
        FileNotFoundError: none is; the message says where it was looked for.
    """
    if any(source.exists() for source in sources):
        return
    problems = [source.problem for source in sources if source.problem]
    if problems:  # the last one, as what is wrong with a whole tar is said behind its samples
        raise FileNotFoundError(f"none of the {len(sources)} images exists: {problems[-1]}")
    raise FileNotFoundError(
        f"none of the {len(sources)} images exists: the first was looked for at "
        f"{' and '.join(sources[0].places)}. Is --data_dir the folder with the images?"
    )


def download(url: str, timeout: float = TIMEOUT, attempts: int = ATTEMPTS) -> bytes:
    """Fetch `url`; network trouble is retried, an answer such as 404 is not.

    Raises:
        OSError: not reachable, refused, too slow or too large.
    """
    problem: Exception | None = None
    for _ in range(attempts):
        try:
            request = urllib.request.Request(_encoded(url), headers={"User-Agent": "talk2dino"})
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                data = answer.read(MAX_DOWNLOAD + 1)
        except urllib.error.HTTPError as error:
            problem = error
            if error.code < 500:
                break
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = error
        else:
            if len(data) > MAX_DOWNLOAD:
                raise OSError(f"{url} is larger than {MAX_DOWNLOAD} bytes")
            return data
    raise OSError(f"{url} could not be downloaded ({problem})") from problem


def _is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def _encoded(url: str) -> str:
    """The address with percent codes for what an address cannot hold; codes that are there stay."""
    parts = urlsplit(url.strip())
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    url = re.sub("%(?![0-9A-Fa-f]{2})", "%25", urlunsplit(parts._replace(netloc=host)))
    return quote(url, safe="%/:=&?~#+!$,;'@()*[]")


def _last_part(url: str | None) -> str:
    return PurePosixPath(urlsplit(url or "").path).name
