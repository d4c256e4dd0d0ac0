"""Filtering, merging and pairing captions through the command."""

import ast
import csv
import json
from collections import Counter

import numpy as np
import pytest

from talk2dino.__main__ import main
from talk2dino.methods.ovsegmentor.data import prepare as prepare_module
from talk2dino.methods.ovsegmentor.data.prepare import filter_captions
from talk2dino.methods.ovsegmentor.data.table import EntityIndex

CAPTIONS = [
    ("0.jpg", "Two dogs, and a Cat"),
    ("1.jpg", "sunset"),
    ("2,x.jpg", 'a "cat"\nin a box'),
    ("3.jpg", ""),
    ("4.jpg", "一只猫 cat"),
    ("", "a cat"),
    ("6.jpg", "a dog"),
    ("7.jpg", "кошка"),
]


def prepare(*arguments):
    return main(["prepare-captions", *map(str, arguments)])


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "cc.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image_id", "caption"), *CAPTIONS])
    return path


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_filter_keeps_the_captions_that_name_an_entity(captions, tmp_path, capsys):
    assert prepare("filter", "--metafile", captions, "--processors", 1) == 0
    assert read(tmp_path / "subsets" / "cc12m_0.csv") == [
        ["image_id", "caption", "entity"],
        ["0.jpg", "Two dogs, and a Cat", "dog,cat"],
        ["2,x.jpg", 'a "cat"\nin a box', "cat,box"],
        ["6.jpg", "a dog", "dog"],
    ]
    assert capsys.readouterr().out == (
        f"{tmp_path / 'subsets'}: kept 3 of 8 captions (left out: 1 empty; 2 in another script; "
        "1 without an entity; 1 without an image)\n"
    )


def test_the_published_filter_wants_the_very_words(captions, tmp_path):
    arguments = ["filter", "--metafile", captions, "--processors", 1]
    assert prepare(*arguments, "--compat") == 0
    rows = read(tmp_path / "subsets" / "cc12m_0.csv")
    assert [row[0] for row in rows] == ["image_id", "2,x.jpg", "6.jpg"]
    assert prepare(*arguments) == 1  # parts of the other kind are there


def test_damaged_rows_are_counted_and_named(tmp_path, capsys):
    path = tmp_path / "cc.tsv"
    path.write_bytes(b"0.jpg\ta cat\n1.jpg\ta\tcat\n2.jpg\t\xff cat\n")
    assert prepare("filter", "--metafile", path, "--processors", 1) == 0
    printed = capsys.readouterr()
    assert "kept 1 of 3 captions (left out: 2 damaged)" in printed.out
    assert "damaged rows were left out" in printed.err
    assert "row 1 has 3 fields instead of 2" in printed.err
    assert "row 2 is not UTF-8" in printed.err


def test_nothing_kept_is_a_failure(tmp_path, capsys):
    path = tmp_path / "cc.tsv"
    path.write_text("0.jpg\tnothing of it\n")
    assert prepare("filter", "--metafile", path, "--processors", 1) == 1
    assert "no caption names an entity of the list" in capsys.readouterr().err


@pytest.mark.parametrize("parts", [1, 2, 3, 20])
def test_parts_joined_are_the_whole_whatever_their_number(captions, tmp_path, parts):
    filter_captions(captions, tmp_path / "whole", 1)
    filter_captions(captions, tmp_path / "parts", parts)
    assert prepare("merge", "--dstdir", tmp_path / "parts", "--delete_parts") == 0
    whole = (tmp_path / "whole" / "cc12m_0.csv").read_bytes()
    left = {path.name for path in (tmp_path / "parts").iterdir()}
    assert left == {"cc12m_filtered_subset.csv"}
    assert (tmp_path / "parts" / "cc12m_filtered_subset.csv").read_bytes() == whole


def test_rows_of_damaged_lines_count_from_the_file_in_every_part(tmp_path):
    path = tmp_path / "cc.tsv"
    path.write_text("".join(f"{i}.jpg\ta cat\n" for i in range(9)) + "9.jpg\n")
    kept, left_out = filter_captions(path, tmp_path / "parts", 3)
    assert left_out.examples == ["row 9 has 1 fields instead of 2"] and kept == 9


def test_parts_of_other_settings_are_not_mixed(captions, tmp_path, capsys):
    arguments = ("filter", "--metafile", captions, "--processors", 1)
    assert prepare(*arguments) == 0
    captions.write_text("1.jpg,a dog\n")
    assert prepare(*arguments) == 1
    assert "made from another input or with other settings" in capsys.readouterr().err
    assert prepare(*arguments, "--overwrite") == 0
    (tmp_path / "subsets" / "cc12m_0.csv.json").unlink()
    assert prepare(*arguments) == 1


def test_merge_wants_all_parts_of_one_run(captions, tmp_path, capsys):
    folder = tmp_path / "parts"
    filter_captions(captions, folder, 2)
    (folder / "cc12m_1.csv").rename(tmp_path / "cc12m_1.csv")
    assert prepare("merge", "--dstdir", folder) == 2
    assert "does not hold the 2 parts of one run" in capsys.readouterr().err
    (tmp_path / "cc12m_1.csv").rename(folder / "cc12m_1.csv")
    record = json.loads((folder / "cc12m_1.csv.json").read_text())
    record["made_from"]["lemmas"] = "wordnet"
    (folder / "cc12m_1.csv.json").write_text(json.dumps(record))
    assert prepare("merge", "--dstdir", folder) == 2
    assert "does not hold the 2 parts of one run" in capsys.readouterr().err


def test_merge_joins_csv_files_of_other_origin_by_number(tmp_path, capsys):
    for number in (10, 2, 1):
        (tmp_path / f"cc12m_{number}.csv").write_text(f"image_id,caption\n{number},a cat")
    assert prepare("merge", "--dstdir", tmp_path) == 0
    merged = tmp_path / "cc12m_filtered_subset.csv"
    assert merged.read_text() == "image_id,caption\n1,a cat\n2,a cat\n10,a cat\n"
    assert prepare("merge", "--dstdir", tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err
    (tmp_path / "cc12m_2.csv").write_text("image_id,words\n2,a cat\n")
    assert prepare("merge", "--dstdir", tmp_path, "--overwrite") == 1
    assert "has the columns 'image_id,words'" in capsys.readouterr().err
    assert merged.read_text().count("\n") == 4


def test_makepair_draws_partners_that_share_the_entity(captions, tmp_path, capsys):
    metafile = tmp_path / "meta.csv"
    names = ["dog", "cat", "dog,cat", "box, dog,", "it's"]
    rows = [(f"{i}.jpg", "words", names[i % 5]) for i in range(60)]
    with metafile.open("w", newline="") as file:
        csv.writer(file).writerows([("image_id", "caption", "entity"), *rows])
    assert prepare("makepair", "--metafile", metafile, "--processors", 1) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'meta_pair.csv'}: 60 rows\n"
    header, *written = read(tmp_path / "meta_pair.csv")
    assert header == ["image_id", "caption", "entity", "pairindex", "pairentity"]
    owners = [{word.strip() for word in row[2].split(",")} for row in rows]
    for row, fields in enumerate(written):
        partners, entities = map(ast.literal_eval, fields[3:])
        assert len(partners) == len(entities) == 10
        for partner, entity in zip(partners, entities, strict=True):
            assert entity in owners[row] and entity in owners[partner]
    everything = Counter(p for fields in written for p in ast.literal_eval(fields[3]))
    assert len(everything) > 50 and max(everything.values()) < 40
    assert [path.name for path in tmp_path.glob(".meta*")] == []


def test_the_seed_and_nothing_else_decides_the_pairs(tmp_path, monkeypatch):
    metafile = tmp_path / "meta.csv"
    metafile.write_text("image_id,caption,entity\n" + "1.jpg,c,dog\n2.jpg,c,cat\n" * 20)
    monkeypatch.setattr(prepare_module, "ROWS_AT_ONCE", 7)

    def pairs(seed, name):
        prepare_module.make_pairs(metafile, tmp_path / name, seed)
        return (tmp_path / name).read_bytes()

    assert pairs(0, "a.csv") == pairs(0, "b.csv") != pairs(1, "c.csv")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("image_id,caption\n1.jpg,c\n", "unknown column of"),
        ("image_id,caption,entity\n1,c,dog\n2,c,\n", "row 1, column 'entity': names no entity"),
        ("image_id,caption,entity\n1,c\n", "row 0 has 2 fields instead of 3"),
        ("image_id,caption,entity\n", "holds no rows"),
        ("image_id,caption,entity,pairindex\n", "has pairs already"),
    ],
)
def test_makepair_names_the_row_and_column_of_a_problem(tmp_path, capsys, content, problem):
    (tmp_path / "meta.csv").write_text(content)
    assert prepare("makepair", "--metafile", tmp_path / "meta.csv") in (1, 2)
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "meta_pair.csv").exists()


def test_draws_are_uniform_over_entities_then_over_rows():
    index = EntityIndex()
    for entities in (["a"], ["a", "b"], [], ["b"], ["b"]):
        index.add(entities)
    index.sort()
    codes, partners = index.draw(np.random.default_rng(0), np.array([1]), 30_000)
    shares = np.bincount(partners[0], minlength=5) / 30_000
    np.testing.assert_allclose(shares, [1 / 4, 1 / 4 + 1 / 6, 0, 1 / 6, 1 / 6], atol=0.01)
    np.testing.assert_allclose((codes == index.names["b"]).mean(), 0.5, atol=0.01)


def test_json_lines_become_a_csv(tmp_path, capsys):
    path = tmp_path / "cc4m.json"
    path.write_text(
        '{"filename": "a.jpg", "caption": "a, b"}\n\n{"image_id": "c", "caption": ""}\n'
    )
    assert prepare("json2csv", "--metafile", path) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cc4m.csv'}: 2 rows\n"
    assert read(tmp_path / "cc4m.csv") == [["image_id", "caption"], ["a.jpg", "a, b"], ["c", ""]]


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"filename": "a"}', '{"filename": 1, "caption": ""}']
)
def test_a_line_that_is_no_caption_is_named(tmp_path, capsys, line):
    path = tmp_path / "cc4m.json"
    path.write_text('{"filename": "a.jpg", "caption": "b"}\n' + line)
    assert prepare("json2csv", "--metafile", path) == 1
    assert "cc4m.json: line 2 is" in capsys.readouterr().err
    assert not (tmp_path / "cc4m.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("filter",), "filter needs --metafile"),
        (("merge",), "merge needs --dstdir"),
        (("merge", "--dstdir", "nowhere"), "nowhere: no such folder"),
        (("merge", "--dstdir", "."), "holds no .csv files to merge"),
        (("filter", "--metafile", "nowhere.csv"), "nowhere.csv: no such file"),
        (("json2csv", "--metafile", "nowhere.json"), "nowhere.json: no such file"),
        (("filter", "--metafile", "x.csv", "--processors", "0"), "processors must be at least 1"),
        (("makepair", "--metafile", "x.csv", "--seed", "-1"), "seed must be at least 0"),
    ],
)
def test_wrong_arguments_are_refused_at_once(tmp_path, monkeypatch, capsys, arguments, problem):
    monkeypatch.chdir(tmp_path)
    assert prepare(*arguments) == 2
    assert problem in capsys.readouterr().err


@pytest.fixture
def filtered(tmp_path):
    """Two parts beside their input, which is called like a part."""
    metafile = tmp_path / "cc12m_all.csv"
    metafile.write_text("".join(f"{n}.jpg,a dog and number {n}\n" for n in range(100)))
    flags = ("--metafile", metafile, "--dstdir", tmp_path, "--lemmas", "lemminflect")
    return flags


def test_overwrite_removes_parts_only_and_not_before_the_new_ones(filtered, tmp_path, capsys):
    filter_captions(filtered[1], tmp_path, 3)
    (tmp_path / "cc12m_mine.csv").write_text("mine")
    assert prepare("filter", *filtered, "--processors", 1) == 1  # made with other settings
    assert prepare("filter", *filtered, "--processors", 1, "--overwrite") == 0
    assert "kept 100 of 100" in capsys.readouterr().out
    names = sorted(path.name for path in tmp_path.glob("*.csv"))
    assert names == ["cc12m_0.csv", "cc12m_all.csv", "cc12m_mine.csv"]


def test_a_filter_does_not_replace_its_input_or_a_table_that_is_no_part(filtered, tmp_path, capsys):
    (tmp_path / "cc12m_all.csv").rename(tmp_path / "cc12m_0.csv")
    flags = ("--dstdir", tmp_path, "--processors", 1, "--overwrite", "--metafile")
    assert prepare("filter", *flags, tmp_path / "cc12m_0.csv") == 2
    assert "cc12m_0.csv is an input" in capsys.readouterr().err
    (tmp_path / "other.tsv").write_text("1.jpg\ta dog\n")
    assert prepare("filter", *flags, tmp_path / "other.tsv") == 1
    assert len((tmp_path / "cc12m_0.csv").read_text().splitlines()) == 100


def test_a_merge_takes_no_result_for_a_part(filtered, tmp_path, capsys):
    parts = tmp_path / "parts"
    filter_captions(filtered[1], parts, 2)
    assert prepare("merge", "--dstdir", parts) == 0
    assert prepare("merge", "--dstdir", parts, "--out", parts / "all.csv") == 0
    assert "all.csv: 2 parts" in capsys.readouterr().out
    assert len((parts / "all.csv").read_text().splitlines()) == 101
    assert prepare("merge", "--dstdir", parts, "--out", parts / "cc12m_0.csv", "--overwrite") == 2
    assert "cc12m_0.csv is an input" in capsys.readouterr().err
    (parts / "more_1.csv").write_text("image_id,caption,entity\n")
    assert prepare("merge", "--dstdir", parts, "--overwrite") == 2
    assert "does not hold the 2 parts of one run of the filter" in capsys.readouterr().err


def test_pairs_are_not_written_over_their_metafile(filtered, tmp_path, capsys):
    parts = tmp_path / "parts"
    assert prepare("filter", *filtered, "--dstdir", parts, "--processors", 1) == 0
    path = parts / "cc12m_0.csv"
    assert prepare("makepair", "--metafile", path, "--out", path, "--overwrite") == 2
    assert "cc12m_0.csv is an input" in capsys.readouterr().err
