"""What a visitor gives, checked before a model sees it: category names and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from talk2dino.config import check_at_least, split_names
from talk2dino.pictures.images import check_image, read_rgb
from talk2dino.pictures.vocabularies import Vocabulary, read_word_lists
from talk2dino.segmenter import BACKGROUND
from talk2dino.sizes import scoring_size

MAX_NAME = 80
"""Characters in one category name."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_pixels: int = 50_000_000
    """Of a picture; larger ones are refused before they are decoded."""
    max_side: int = 1024
    """Long side in pixels at which larger pictures are segmented and shown."""
    max_categories: int = 64
    """Names in one request."""

    def __post_init__(self) -> None:
        check_at_least(1, **{f"--{flag}": value for flag, value in vars(self).items()})
        if self.max_categories > 255:
            raise ValueError(
                f"--max_categories must be at most 255, got {self.max_categories}: "
                "an indexed PNG holds 256 labels, the background included."
            )


@dataclass(frozen=True)
class ServerConfig:
    """Where and to whom the page is served."""

    server_name: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for the whole network."""
    server_port: int | None = None
    """Port (default: the first free from 7860)."""
    share: bool = False
    """Public link through Gradio's servers."""
    max_queue: int = 32
    """Requests that may wait; more are told to come back."""
    max_upload_mb: int = 50
    """Of one uploaded file."""
    max_uploads_mb: int = 1000
    """Of all uploads together; the oldest make room."""

    def __post_init__(self) -> None:
        smallest = {"--max_queue": self.max_queue, "--max_upload_mb": self.max_upload_mb}
        check_at_least(1, **smallest)
        if self.max_uploads_mb <= self.max_upload_mb:
            raise ValueError(
                f"--max_uploads_mb must be more than --max_upload_mb ({self.max_upload_mb}), got "
                f"{self.max_uploads_mb}."
            )
        if self.server_port is not None and not 1 <= self.server_port <= 65535:
            raise ValueError(f"--server_port must lie between 1 and 65535, got {self.server_port}.")


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded upload."""

    image: Image.Image
    """RGB, at the size at which it is scored."""
    full_hw: tuple[int, int]
    """Height and width of the upload, upright."""
    stem: str
    """Start of the names of the files to download."""


def read_names(text: str | None, background: bool, limits: Limits) -> Vocabulary:
    """Category names from free text: commas or lines separate them, underscores mean spaces.

    Empty parts and repetitions (case does not count: CLIP reads lower case) are left out. Where
    there is a `;`, every part is a line of a vocabulary, `name; alias`: see `read_word_lists`.

    Raises:
        ValueError: none, too many, a very long one, or one called like the background.
    """
    names: dict[str, str] = {}
    for part in split_names((text or "").replace("\n", ",")):
        visible = "".join(c if c.isprintable() else " " for c in part.replace("_", " "))
        name = " ".join(visible.split())
        if name:
            names.setdefault(name.lower(), name)
    if not names:
        raise ValueError("Name at least one category, for example: cat, sofa, window.")
    if len(names) > limits.max_categories:
        raise ValueError(
            f"{len(names)} categories are too many for one request; at most "
            f"{limits.max_categories} are taken. Remove some."
        )
    words = [word.strip() for name in names.values() for word in name.split(";")]
    long = [word for word in words if len(word) > MAX_NAME]
    if long:
        raise ValueError(
            f"“{long[0][:30]}…” has {len(long[0])} characters; a category may have {MAX_NAME}. "
            "Are the commas missing?"
        )
    if background and BACKGROUND in names:
        raise ValueError(
            "“background” is added by the switch of that name. Remove the word, or switch it off."
        )
    if not any(";" in name for name in names.values()):
        return Vocabulary(tuple(names.values()))
    found = read_word_lists(list(names.values()))
    if found.background and not background:
        raise ValueError("These are words of the background. Switch it on, or remove that line.")
    return found


def read_picture(payload: Mapping[str, Any] | None, limits: Limits) -> Picture:
    """Decode an upload at the size at which it will be scored.

    Gradio checks of what is marked as a file that it is an upload; it lets other paths pass, so
    that the page's endpoints would read any picture of the server. Here the folder is checked.

    Args:
        payload: what the page sends: where the server keeps the file, and what its visitor calls
            it, which is never used as a path.
        limits: of the request.

    Raises:
        ValueError: nothing given, no upload, no image, damaged, or more than `limits.max_pixels`.
    """
    from gradio.utils import get_upload_folder

    if not payload or not payload.get("path"):
        raise ValueError("Choose a picture first: upload one, paste one, or take an example.")
    path, folder = Path(payload["path"]).resolve(), Path(get_upload_folder()).resolve()
    if not path.is_relative_to(folder):
        raise ValueError("This picture was not uploaded. Choose it again.")
    name = payload.get("orig_name") or path.name
    try:
        height, width = check_image(path)
        if height * width > limits.max_pixels:
            raise ValueError(
                f"{name} has {width} × {height} pixels ({_mega(height * width)} megapixels); at "
                f"most {_mega(limits.max_pixels)} megapixels are taken. Make it smaller first."
            )
        image = read_rgb(path)
    except FileNotFoundError as error:
        raise ValueError(f"{name} is no longer on the server. Upload it again.") from error
    except (ValueError, OSError) as error:  # the visitor's name for it, not the server's path
        raise ValueError(str(error).replace(str(path), name)) from error
    full_hw = (image.height, image.width)
    height, width = scoring_size(*full_hw, limits.max_side)
    if (height, width) != full_hw:
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return Picture(image, full_hw, _safe_stem(name))


def _mega(pixels: int) -> str:
    return f"{pixels / 1e6:.3g}"


def _safe_stem(name: str) -> str:
    """Letters, digits, dashes and underscores of a file's name, at most 40; or `picture`."""
    kept = "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(name).stem)
    return kept.strip("_")[:40] or "picture"
