"""What a quickstart was asked for and how far it came, so that it can be run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from talk2dino.files import atomic_path
from talk2dino.textfiles import read_json


class Record:
    """What a quickstart was asked for and how far it came; lives in its folder.

    Args:
        path: the JSON file.
        settings: everything that decides the results, as plain JSON data.
        overwrite: forget what was done.

    Raises:
        FileExistsError: the file belongs to other settings and `overwrite` is false.
    """

    def __init__(self, path: Path, settings: dict[str, Any], overwrite: bool = False) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        self.done: list[str] = []
        known = None if overwrite else _read(path)
        if known is None:
            return
        if known["settings"] != self.settings:
            differing = [
                f"{key} {known['settings'].get(key)} (asked for: {value})"
                for key, value in self.settings.items()
                if known["settings"].get(key) != value
            ]
            raise FileExistsError(
                f"{path.parent} holds a quickstart with {', '.join(differing)}. Choose another "
                "folder with --output, or pass --overwrite to start again."
            )
        self.done = known["done"]

    def finish(self, name: str) -> None:
        """Note that a step is done."""
        self.done.append(name)
        self.write()

    def write(self) -> None:
        """Write the file, atomically."""
        content = {"settings": self.settings, "done": self.done}
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path, "Delete it, or pass --overwrite.")
    except FileNotFoundError:
        return None
    if not isinstance(content, dict) or not {"settings", "done"} <= content.keys():
        raise ValueError(f"{path} is no record of a quickstart. Choose another --output.")
    return content
