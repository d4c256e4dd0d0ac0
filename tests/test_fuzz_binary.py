"""Damaged copies of binary files, by fixed seeds: each is read, or refused in a sentence.

No other error, no endless loop, and no memory beyond what a file of that size can need.
`TALK2DINO_FUZZ=5000 python -m pytest tests/test_fuzz_binary.py` tries more of them.
"""

import io
import json
import os
import random
import resource
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from talk2dino.backbones.checkpoints import read_state_dict
from talk2dino.features.captions import CaptionInput
from talk2dino.features.store import write_features
from talk2dino.features.tars import read_members, write_shards
from talk2dino.files import load_torch, save_safetensors, save_torch
from talk2dino.methods.ovsegmentor.data.rows import TarRows
from talk2dino.methods.ovsegmentor.data.words import CaptionReader, dictionary_lemma
from talk2dino.methods.talk2dino.training.dataset import FeatureChoice, StoredPairs
from tests.features.test_store import small

TRIES = int(os.environ.get("TALK2DINO_FUZZ", "60"))
MEMORY = 2 << 30
"""Address space a reader may take, in bytes: whoever believes a damaged size takes more."""
INTERESTING = (
    b"\0",
    b"\xff" * 8,
    b"\x80" + b"\0" * 7,
    b"9" * 11,
    b"\0" * 512,
    b"../",
    b"K\x01\x86",
)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """An allocation of far more than the files can need fails, as it would on a full machine."""
    if not Path("/proc/self/statm").exists():  # macOS
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def damage(data: bytes, random: random.Random) -> bytes:
    """Flip bits, cut, splice, or write something awkward over some bytes; once or several times."""
    for _ in range(random.choice((1, 1, 2, 8))):
        start, other = sorted(random.randrange(len(data) + 1) for _ in range(2))
        kind = random.randrange(6)
        if kind == 0:
            data = data[:start] or data
        elif kind == 1:
            data = data[:start] + data[other:] or data
        elif kind == 2:
            data = data[:other] + data[start:]
        elif kind == 3:
            word = random.choice(INTERESTING)
            data = data[:start] + word + data[start + len(word) :]
        else:
            place = min(start, len(data) - 1)
            data = (
                data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]
            )
    return data


def repaired(data: bytes) -> bytes:
    """A tar whose headers have the checksums of what they hold now, so that it is believed."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    for number, block in enumerate(blocks):
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


def write_features_file(path: Path) -> None:
    write_features(small(), path)


def write_published_file(path: Path) -> None:
    write_features(small(), path, "coco")


def write_shard(path: Path) -> None:
    write_shards(small(), [path])


def write_web_tar(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a", "b", "é" * 120, "d"):
            for suffix, data in (("jpg", b"j" * 700), ("json", json.dumps({"caption": "a cat"}))):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                content = data.encode() if isinstance(data, str) else data
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


STATE = {"linear.weight": torch.arange(12.0).view(3, 4), "linear.bias": torch.ones(3)}


def write_checkpoint(path: Path) -> None:
    save_torch({"model": STATE, "epoch": 3, "best": {"miou": 0.25}}, path)


def write_old_checkpoint(path: Path) -> None:
    torch.save({"model": STATE}, path, _use_new_zipfile_serialization=False)


def write_safetensors(path: Path) -> None:
    save_safetensors(STATE, path)


def extract(path: Path) -> None:
    """What the extraction commands read, and write again."""
    found = CaptionInput(path, need_images=False).split(0, 1).features
    write_features(found, path.with_name("again.pth"))


def extract_pictures(path: Path) -> None:
    CaptionInput(path).split(0, 1)


def train(path: Path) -> None:
    features = CaptionInput(path, need_images=False).split(0, 1).features
    pairs = StoredPairs(features, FeatureChoice("dino_features"), path, memory_bytes=0)
    list(pairs.batches([torch.arange(len(pairs))]))


def pretrain(path: Path) -> None:
    rows = TarRows(path, CaptionReader(dictionary_lemma), pairs=True)
    for row in rows.usable.tolist():
        rows.caption(row)


READERS: list[tuple[Callable[[Path], None], str, list[Callable[[Path], object]]]] = [
    (write_features_file, "a.pth", [extract, train, load_torch]),
    (write_published_file, "a.pth", [extract, train]),
    (write_shard, "a.tar", [extract, train]),
    (write_web_tar, "a.tar", [extract, extract_pictures, pretrain]),
    (write_checkpoint, "a.pth", [read_state_dict, load_torch]),
    (write_old_checkpoint, "a.pth", [read_state_dict]),
    (write_safetensors, "a.safetensors", [read_state_dict]),
]


@pytest.mark.parametrize(
    ("write", "name", "readers"), READERS, ids=[write.__name__ for write, _, _ in READERS]
)
def test_a_damaged_file_is_read_or_refused_in_a_sentence(tmp_path, write, name, readers):
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    for read in readers:
        read(path)
    refused = 0
    for seed in range(TRIES):
        data = damage(whole, random.Random(seed))
        path.write_bytes(repaired(data) if path.suffix == ".tar" and seed % 2 else data)
        for read in readers:
            try:
                with bounded_memory():
                    read(path)
            except (ValueError, OSError) as error:
                refused += 1
                assert str(path) in str(error), f"seed {seed}: {error!r} names no file"
            except Exception as error:
                raise AssertionError(f"seed {seed}, {read.__name__}: {error!r}") from error
    assert refused > TRIES / 4


def test_reading_a_tar_ends_whatever_its_headers_say(tmp_path):
    path = tmp_path / "a.tar"
    write_web_tar(path)
    whole = path.read_bytes()
    for seed in range(5 * TRIES):
        path.write_bytes(repaired(damage(whole, random.Random(seed))))
        with suppress(ValueError):
            assert sum(1 for _ in read_members(path)) <= path.stat().st_size // 512
