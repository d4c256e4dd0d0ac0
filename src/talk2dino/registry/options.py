"""What flags may say about a model, and how files are told apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from talk2dino.seeded import parse_seeded


@dataclass(frozen=True)
class ModelOptions:
    """Choices beside a model's name; None or False is the model's own default."""

    weights: str | None = None
    """A file, a folder, or `seeded:<n>`."""
    vision_weights: str | None = None
    """`pretrained`, a file, or `seeded:<n>`."""
    text_weights: str | None = None
    """`pretrained`, a file, or `seeded:<n>`."""
    template: str | None = None
    """Prompt set."""
    pamr: bool = False
    """Refine masks with PAMR."""
    clean_background: bool | None = None
    """Raise scores where attention agrees with a class."""
    precision: str = "fp32"
    """Of the vision backbone."""

    def given(self) -> list[str]:
        """The names of the choices that were made."""
        return [entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default]


def weights_identity(weights: str | Path) -> str:
    """Weights as results name them: `pretrained` and `seeded:<n>` stay, files by their content."""
    path = Path(weights)
    if parse_seeded(str(weights)) is not None or not path.exists():
        return str(weights)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digests = [(_digest(file, file.stat().st_mtime_ns), file) for file in files]
    if path.is_file():
        return f"sha256:{digests[0][0]}"
    listing = "".join(f"{file.relative_to(path).as_posix()} {digest}\n" for digest, file in digests)
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


@lru_cache(maxsize=64)
def _digest(path: Path, _modified: int) -> str:
    """SHA-256 of a file; a file of several gigabytes is read once per command."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
