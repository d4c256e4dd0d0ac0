"""What flags may say about a model."""

from __future__ import annotations

from dataclasses import dataclass, fields


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
