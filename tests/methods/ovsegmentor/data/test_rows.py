"""Rows of metafiles and tars, with their images and partners."""

import io
import json
import logging
import os
import pickle
import tarfile
from collections import Counter

import numpy as np
import pytest

from talk2dino.methods.ovsegmentor.data import rows as rows_module
from talk2dino.methods.ovsegmentor.data.samples import open_rows
from talk2dino.methods.ovsegmentor.data.words import CaptionReader, dictionary_lemma, own_entities
from tests.methods.ovsegmentor.data.conftest import HEADER, ROWS, save_image, write_rows

reader = CaptionReader(dictionary_lemma)
published = CaptionReader(dictionary_lemma, compat=True)


def draws(rows, row, count=200):
    random = np.random.default_rng(0)
    return Counter(rows.partner(row, random) for _ in range(count))


def test_rows_give_captions_images_and_names(metafile, images, caplog):
    with caplog.at_level(logging.WARNING):
        rows = open_rows(metafile, images, reader)
    assert rows.usable.tolist() == [0, 1, 2, 4]
    assert rows.caption(4) == "three knives" and rows.image(4)[0] == "sub/e.png"
    assert rows.image(4)[1].read().size == (30, 40)
    assert rows.left_out.reasons == {"without an entity": 1, "empty": 1}
    assert "left out 2 captions: 1 empty; 1 without an entity" in caplog.text
    assert "row 3 (d.png) is without an entity; row 5 (f.png) is empty" in caplog.text


def test_as_published_captions_without_an_entity_stay(metafile, images):
    assert open_rows(metafile, images, published).usable.tolist() == [0, 1, 2, 3, 4]


def test_two_columns_are_enough_for_stage_1(tmp_path, images):
    plain = write_rows(tmp_path / "plain.csv", [row[:2] for row in ROWS], HEADER[:2])
    assert open_rows(plain, images, reader).usable.tolist() == [0, 1, 2, 4]
    with pytest.raises(ValueError, match="no column 'pairindex'.*prepare-captions makepair"):
        open_rows(plain, images, reader, pairs=True)


def test_partners_are_drawn_uniformly_from_the_stored_pairs(metafile, images):
    rows = pickle.loads(pickle.dumps(open_rows(metafile, images, reader, pairs=True)))
    counts = draws(rows, 0)
    assert set(counts) == {(1, "dog"), (2, "sofa")} and min(counts.values()) > 70


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        (0, " ", ", column 'image_id': is empty"),
        (0, "https://x.org/a.jpg", ", column 'image_id': https://x.org/a.jpg is an address"),
        *((3, rows, "pairindex .* are no rows") for rows in ([0, 6], [0, -1], [], [0.5, 1], "0 1")),
        *((4, words, "pairindex .* a word for each") for words in (["dog"], "print(1)", [1, 2])),
    ],
)
def test_a_bad_field_is_named_with_its_row_and_column(tmp_path, images, column, value, problem):
    rows = [list(row) for row in ROWS]
    rows[1][column] = value
    path = write_rows(tmp_path / "bad.csv", rows)
    with pytest.raises(ValueError, match=f"bad.csv: row 1(: )?{problem}"):
        open_rows(path, images, reader, pairs=True)


def test_a_damaged_row_is_named(tmp_path, images):
    path = write_rows(tmp_path / "bad.csv", [*ROWS, ("g.png", "a dog")])
    with pytest.raises(ValueError, match=r"bad\.csv: row 6 has 2 fields instead of 5"):
        open_rows(path, images, reader)


def test_images_that_are_all_missing_are_noticed_at_once(metafile, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_rows(metafile, tmp_path / "nowhere", reader)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="4 of 4 images are missing"):
        open_rows(metafile, tmp_path / "empty", reader)


def test_a_file_without_a_usable_caption_says_why(tmp_path, images):
    path = write_rows(tmp_path / "bad.csv", ROWS[3:4])
    with pytest.raises(ValueError, match="no caption that can be used .1 without an entity"):
        open_rows(path, images, reader)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def tars(tmp_path):
    image = save_image(tmp_path / "x.png", 0).read_bytes()
    folder = tmp_path / "tars"
    folder.mkdir()
    described = json.dumps({"caption": " a dog ", "key": "0"}).encode()
    write_tar(
        folder / "0.tar",
        [
            *(("s/0.png", image), ("s/0.json", described), ("s/0.txt", b"other")),
            *(("s/1.jpg", image), ("s/1.txt", b"a cat and a dog\n")),
            ("s/2.jpg", image),
            ("s/3.txt", b"a dog"),
            *(("s/4.png", image), ("s/4.json", b"{}")),
            *(("s/5.png", image), ("s/5.txt", b"\xff")),
        ],
    )
    write_tar(folder / "1.tar", [("a.jpg", image), ("a.text", b"cats"), ("b.jpg", image)])
    return folder


def test_tars_give_captions_and_images(tars):
    rows = pickle.loads(pickle.dumps(open_rows(tars, "", reader)))
    assert rows.usable.tolist() == [0, 1, 6]
    assert [rows.caption(row) for row in (0, 1, 6)] == ["a dog", "a cat and a dog", "cats"]
    assert rows.image(1)[1].read().size == (30, 40)
    assert rows.image(6)[0] == f"{tars / '1.tar'} (image at byte 512)"
    assert rows.left_out.reasons == {
        "without a caption": 2,
        "without an image": 1,
        "without a readable caption": 2,
    }
    assert rows.left_out.examples[0] == f"sample s/2 of {tars / '0.tar'} is without a caption"


def test_partners_among_tars_share_an_entity(tars):
    rows = open_rows(tars, "", reader, pairs=True)
    assert set(draws(rows, 1)) == {*((0, "dog"), (1, "dog"), (1, "cat"), (6, "cat"))}


def content(rows):
    """All that rows of tars know, and what is drawn of them."""
    drawn = [draws(rows, row) for row in rows.usable]
    return rows.usable.tolist(), [rows.image(row)[0] for row in range(8)], drawn, rows.left_out


@pytest.fixture
def looked_through(tmp_path, monkeypatch):
    """The tars that are looked through; even small ones are kept in a cache of the test's own."""
    seen, real = [], rows_module.read_samples
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(rows_module, "_LARGE", 0)
    monkeypatch.setattr(rows_module, "read_samples", lambda tar: seen.append(tar.name) or real(tar))
    return seen


def test_tars_are_looked_through_once_for_a_reader_and_a_state(tars, tmp_path, looked_through):
    first, seen = content(open_rows(tars, "", reader, pairs=True)), looked_through
    assert content(open_rows(tars, "", reader, pairs=True)) == first
    assert seen == ["0.tar", "1.tar"]
    open_rows(tars, "", reader)
    assert seen == ["0.tar", "1.tar"] * 2
    open_rows(tars, "", CaptionReader(dictionary_lemma, table=own_entities(["cat"])), pairs=True)
    assert seen == ["0.tar", "1.tar"] * 3
    os.utime(tars / "1.tar", (0, 0))
    assert content(open_rows(tars, "", reader, pairs=True)) == first
    assert seen[6:] == ["1.tar"]


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", b"PK\x03\x04"])
def test_a_damaged_cache_is_made_again(tars, tmp_path, looked_through, rubbish):
    first = content(open_rows(tars, "", reader, pairs=True))
    for path in (tmp_path / "cache").rglob("*.npz"):
        path.write_bytes(rubbish)
    assert content(open_rows(tars, "", reader, pairs=True)) == first
    assert len(looked_through) == 4


def test_several_processes_begin_with_tars_of_their_own(tars, looked_through, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    second = content(open_rows(tars, "", reader, pairs=True))
    assert looked_through == ["1.tar", "0.tar"]
    monkeypatch.setenv("RANK", "0")
    assert content(open_rows(tars, "", reader, pairs=True)) == second


def test_small_tars_are_not_kept(tars, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_rows(tars, "", reader)
    assert not (tmp_path / "cache").exists()


def test_a_sample_that_can_have_no_partner_is_left_out(tmp_path):
    image = save_image(tmp_path / "x.png", 0).read_bytes()
    members = [("0.png", image), ("0.txt", b"a dog"), ("1.png", image), ("1.txt", b"sunset")]
    path = write_tar(tmp_path / "a.tar", members)
    rows = open_rows(path, "", published, pairs=True)
    assert rows.usable.tolist() == [0] and rows.left_out.reasons == {"without an entity": 1}


def test_a_caption_without_end_in_a_tar_is_not_read(tmp_path):
    image = save_image(tmp_path / "x.png", 0).read_bytes()
    members = [("0.png", image), ("0.txt", b"a dog " * 2**18), ("1.png", image), ("1.txt", b"dog")]
    rows = open_rows(write_tar(tmp_path / "a.tar", members), "", reader)
    assert rows.left_out.reasons == {"without a readable caption": 1}


def test_a_damaged_tar_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x" * 1024)
    with pytest.raises(ValueError, match=r"a\.tar is damaged"):
        open_rows(tmp_path / "a.tar", "", reader)
