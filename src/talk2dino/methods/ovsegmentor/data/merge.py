"""Join the parts of a filtered metafile, and turn captions in JSON lines into a metafile."""

from __future__ import annotations

import json
import os
import re
import shutil
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from talk2dino.files import atomic_files, check_file, is_unfinished, listed
from talk2dino.methods.ovsegmentor.data.filter import read_record
from talk2dino.methods.ovsegmentor.data.metafile import CAPTION, IMAGE, TableWriter
from talk2dino.textfiles import parse_json, refuse_packed

MERGED = "cc12m_filtered_subset.csv"
"""Name of the joined metafile."""


def list_parts(folder: str | Path) -> list[Path]:
    """The csv files of a folder, but results, in the order of the numbers in their names.

    Raises:
        FileNotFoundError: there is no folder, or no csv file in it.
        ValueError: parts of one filter run are missing, unfinished, or among other files.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    parts = [path for path in listed(folder, "*.csv") if not made(path).exists()]
    for part in parts:
        check_file(part)
    if not parts:
        raise FileNotFoundError(f"{folder} holds no .csv files to merge. Filter captions first.")
    parts.sort(key=_natural)
    _check_complete(parts)
    return parts


def made(out: Path) -> Path:
    """The file beside a result that says what it was made from."""
    return out.with_name(f"{out.name}.made.json")


@contextmanager
def result(out: Path, made_from: dict[str, Any]) -> Iterator[Path]:
    """Where to write `out`; with what it was made from, which may be completed meanwhile."""
    with atomic_files(out.parent, out.name, made(out).name) as folder:
        yield folder / out.name
        text = json.dumps(made_from, indent=1) + "\n"
        (folder / made(out).name).write_text(text, encoding="utf-8")


def merge(parts: Sequence[Path], out: Path, delete: bool = False) -> None:
    """Write the rows of all parts below one header; memory does not depend on their size.

    Args:
        parts: csv files with the same header.
        out: the file to write.
        delete: remove the parts and what is said about them when `out` is complete.

    Raises:
        ValueError: two parts have different headers.
    """
    made_from = {"parts": [part.name for part in parts]}
    with result(out, made_from) as temporary, temporary.open("wb") as target:
        header = b""
        for part in parts:
            with part.open("rb") as source:
                first = source.readline().rstrip(b"\r\n").removeprefix(BOM_UTF8)
                header = header or first
                if first != header:
                    raise ValueError(
                        f"{part} has the columns {first.decode('utf-8', 'replace')!r}, "
                        f"{parts[0]} has {header.decode('utf-8', 'replace')!r}"
                    )
                if part is parts[0]:
                    target.write(header + b"\n")
                shutil.copyfileobj(source, target)
                source.seek(-1, os.SEEK_CUR)
                if source.read(1) != b"\n":
                    target.write(b"\n")
    if delete:
        for part in parts:
            part.unlink()
            part.with_name(part.name + ".json").unlink(missing_ok=True)


def json_to_csv(source: Path, out: Path) -> int:
    """Turn JSON lines `{"filename", "caption"}` into a csv with image_id and caption.

    Returns:
        How many rows were written.

    Raises:
        ValueError: a line is no such object; the message names it.
    """
    refuse_packed(source)
    rows = 0
    made_from: dict[str, Any] = {"metafile": str(source)}
    with (
        source.open("rb") as lines,
        result(out, made_from) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = TableWriter(file)
        writer.write((IMAGE, CAPTION))
        for number, line in enumerate(lines, start=1):
            if line.strip():
                writer.write(_json_fields(line, f"{source}: line {number}"))
                rows += 1
        made_from["rows"] = rows
    return rows


def _json_fields(line: bytes, where: str) -> tuple[str, str]:
    record: Any = parse_json(line, where)
    if isinstance(record, dict):
        image, caption = record.get("filename", record.get(IMAGE)), record.get(CAPTION)
        if isinstance(image, str) and isinstance(caption, str):
            return image, caption
    raise ValueError(f"{where} is no object with a 'filename' and a 'caption'")


def _natural(path: Path) -> list[tuple[int, str]]:
    """cc12m_2 before cc12m_10, so that rows keep the order of the input."""
    pieces = re.split(r"(\d+)", path.name)
    return [(int(piece), "") if piece.isdecimal() else (0, piece) for piece in pieces]


def _check_complete(parts: Sequence[Path]) -> None:
    """Parts that know which of how many they are must all be there, from one input."""
    records = [record for part in parts if (record := read_record(part))]
    for part in parts:
        if is_unfinished(part.with_name(part.name + ".json")):
            raise ValueError(f"{part} is unfinished. Run the filter again to finish it.")
        if records and read_record(part) is None:
            raise ValueError(f"{part} is no part of the filter run beside it. Move it elsewhere.")
    if not records:
        return
    made_from = records[0]["made_from"]
    if any(record["made_from"] != made_from for record in records):
        raise ValueError(
            f"{parts[0].parent} holds parts of different filter runs. Keep those of one."
        )
    found = {record["part"] for record in records}
    missing = [number for number in range(made_from["parts"]) if number not in found]
    if missing:
        names = ", ".join(f"cc12m_{number}.csv" for number in missing[:5])
        raise ValueError(
            f"{parts[0].parent} holds {len(found)} of {made_from['parts']} parts; missing: "
            f"{names}. Run the filter again to finish it."
        )
