"""`data check` on small data sets with the mistakes that people make."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from talk2dino.benchmarks.data.check import check_data
from talk2dino.benchmarks.datasets import pair_problem
from talk2dino.benchmarks.table import BENCHMARKS
from talk2dino.cli.data import Data
from talk2dino.toy.world import WorldConfig, write_world


def save(path, labels=((0, 1), (2, 255))):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, dtype=np.uint8)).save(path)


def put(root, key, stems, labels=((1, 1), (2, 255))):
    """Write `stems` of one benchmark: images, labels, and the list if it has one."""
    row = BENCHMARKS[key]
    for stem in stems:
        save(root / row.images / f"{stem}{row.image_suffixes[0]}", np.zeros((2, 2, 3)))
        save(root / row.labels / f"{stem}{row.label_suffix}", labels)
    if row.split is not None:
        (root / row.split).parent.mkdir(parents=True, exist_ok=True)
        (root / row.split).write_text("".join(f"{stem}\n" for stem in stems))
    return row


def look(root, key):
    report = check_data(BENCHMARKS[key], root, sample_size=5)
    return report, " | ".join(report.problems)


@pytest.mark.parametrize("key", BENCHMARKS)
def test_everything_there_but_the_number(key, tmp_path, monkeypatch):
    stems = ["ulm/ulm_0", "ulm/ulm_1"] if key == "cityscapes" else ["a", "b"]
    put(tmp_path, key, stems)
    report, problems = look(tmp_path, key)
    assert (report.state, problems) == ("differs", "")
    assert (report.num_images, report.num_labels) == (2, 2)
    assert "2 images, officially" in report.warnings[0]
    assert report.histogram.startswith("2 labels, 3 values: 1 ")
    assert report.histogram.endswith("255 (ignored) 25 %")
    for texts in vars(BENCHMARKS[key].source).values():
        if isinstance(texts, str):
            texts.format(root="data", key=key)  # no stray braces


def test_the_official_number_is_complete(tmp_path):
    put(tmp_path, "cityscapes", [f"ulm/ulm_{i}" for i in range(500)])
    assert look(tmp_path, "cityscapes")[0].state == "complete"


def test_pictures_that_end_differently_are_named(tmp_path):
    row = put(tmp_path, "ade20k", ["a"])
    for name in ("b.JPG", "c.jpeg"):
        save(tmp_path / row.images / name, np.zeros((2, 2, 3)))
    warnings = " ".join(look(tmp_path, "ade20k")[0].warnings)
    assert "do not end in .jpg: 'b.JPG', 'c.jpeg'" in warnings


def test_a_label_that_is_a_jpeg_is_no_lossless_png(tmp_path):
    row = put(tmp_path, "voc", ["a"])
    Image.new("L", (2, 2)).save(tmp_path / row.labels / "a.png", format="JPEG")
    assert "a.png is no lossless PNG but JPEG" in look(tmp_path, "voc")[1]


def test_nothing_there_says_where_to_get_it(tmp_path):
    for key in BENCHMARKS:
        report, problems = look(tmp_path, key)
        assert report.state == "missing"
        assert f"no {tmp_path}" in problems and "http" in problems, key


def test_labels_that_were_not_converted(tmp_path):
    row = put(tmp_path, "cityscapes", ["ulm/ulm_0"])
    city = tmp_path / row.labels / "ulm"
    (city / "ulm_0_gtFine_labelTrainIds.png").rename(city / "ulm_0_gtFine_labelIds.png")
    assert "1 labels are not converted to TrainIds" in look(tmp_path, "cityscapes")[1]
    row = put(tmp_path, "coco_object", ["000000000139"])
    (tmp_path / row.labels / "000000000139_instanceTrainIds.png").unlink()
    save(tmp_path / row.labels / "000000000139.png")
    _, problems = look(tmp_path, "coco_object")
    assert "data convert" in problems and "--benchmarks coco_object" in problems


def test_converted_names_with_raw_content(tmp_path):
    put(tmp_path, "cityscapes", ["ulm/ulm_0"], labels=((7, 33), (26, 26)))
    assert "these are labelIds under the name of TrainIds" in look(tmp_path, "cityscapes")[1]
    put(tmp_path, "coco_stuff", ["1"], labels=((0, 181), (3, 3)))
    assert "raw COCO-Stuff ids" in look(tmp_path, "coco_stuff")[1]


def test_context_without_masks_and_list(tmp_path):
    row = BENCHMARKS["context"]
    save(tmp_path / row.images / "2008_000002.jpg", np.zeros((2, 2, 3)))
    _, problems = look(tmp_path, "context")
    assert f"no {tmp_path / row.labels} | no {tmp_path / row.split}" in problems
    assert "get trainval_merged.json, http" in problems and "data convert" in problems


@pytest.mark.parametrize(
    ("stems", "said"),
    [
        ([f"{i}" for i in range(1464)], "that is ImageSets/Segmentation/train.txt"),
        (["2007_000033.jpg"], "image files are missing"),
        ([], "val.txt is empty: it lists no names"),
        (["2007_000033", "2007_000033"], "lists more than once: 2007_000033 (2 times)"),
    ],
)
def test_the_wrong_list(stems, said, tmp_path):
    row = put(tmp_path, "voc", ["2007_000033"])
    (tmp_path / row.split).write_text("\n".join(stems))
    assert said in look(tmp_path, "voc")[1]


def test_archives_that_were_not_unpacked(tmp_path):
    folder = tmp_path / "cityscapes"
    folder.mkdir()
    (folder / "leftImg8bit_trainvaltest.zip").touch()
    _, problems = look(tmp_path, "cityscapes")
    assert f"not unpacked: {folder / 'leftImg8bit_trainvaltest.zip'}" in problems


def test_a_folder_one_level_too_deep(tmp_path):
    found = tmp_path / "ade" / "ADEChallengeData2016" / "ADEChallengeData2016"
    save(found / "images" / "validation" / "ADE_val_00000001.jpg", np.zeros((2, 2, 3)))
    assert f"but {found / 'images' / 'validation'} is there" in look(tmp_path, "ade20k")[1]


def test_colours_in_place_of_labels_and_other_sizes(tmp_path):
    row = put(tmp_path, "voc", ["a", "b", "c"])
    save(tmp_path / row.labels / "a.png", np.zeros((2, 2, 3)))
    save(tmp_path / row.labels / "b.png", np.zeros((3, 2)))
    (tmp_path / row.labels / "c.png").write_bytes(b"\x89PNG")
    _, problems = look(tmp_path, "voc")
    assert "a.png holds RGB colours" in problems
    assert "b.png is 2x3 pixels, but its image is 2x2" in problems
    assert "c.png is not an image" in problems


def test_missing_images_and_labels_are_counted_and_named(tmp_path):
    row = put(tmp_path, "voc", ["a", "b", "c"])
    (tmp_path / row.images / "b.jpg").unlink()
    (tmp_path / row.labels / "c.png").unlink()
    report, problems = look(tmp_path, "voc")
    assert (report.num_images, report.num_labels, report.state) == (2, 1, "incomplete")
    assert "1 of 3 image files are missing" in problems and "b.jpg" in problems
    assert "1 of 3 label files are missing" in problems and "c.png" in problems


def test_labels_without_any_class_look_wrong(tmp_path):
    put(tmp_path, "ade20k", ["a"], labels=((0, 0), (0, 0)))
    report, _ = look(tmp_path, "ade20k")
    assert any("hold no class at all" in text for text in report.warnings)


def test_the_command_checks_converts_and_checks_again(tmp_path, capsys):
    row = put(tmp_path, "cityscapes", ["ulm/ulm_0"])
    city = tmp_path / row.labels / "ulm"
    (city / "ulm_0_gtFine_labelTrainIds.png").unlink()
    save(city / "ulm_0_gtFine_labelIds.png", ((7, 8), (26, 0)))
    flags = ["--data_root", str(tmp_path), "--benchmarks", "cityscapes"]
    assert Data.main(["check", *flags]) == 1
    assert "not converted to TrainIds" in capsys.readouterr().out.replace("\n    ", " ")
    assert Data.main(["convert", *flags]) == 0
    assert "1 written" in capsys.readouterr().out
    assert Data.main(["check", *flags]) == 0
    shown = capsys.readouterr().out
    assert "1 of 1 benchmarks can be evaluated" in shown
    assert "1 labels, 4 values: 0" in shown


def test_converting_all_skips_what_is_not_there(tmp_path, capsys):
    assert Data.main(["convert", "--data_root", str(tmp_path)]) == 0
    assert capsys.readouterr().err.count("skipped") == 4
    assert Data.main(["convert", "--data_root", str(tmp_path), "--benchmarks", "stuff"]) == 1
    assert "stuffthingmaps_trainval2017.zip" in capsys.readouterr().err


def test_wrong_arguments_are_refused(tmp_path, capsys):
    assert Data.main(["check", "--data_root", str(tmp_path), "--benchmarks", "vok"]) == 2
    assert "Did you mean 'voc'" in capsys.readouterr().err
    assert Data.main(["convert", "--data_root", str(tmp_path), "--benchmarks", "toy"]) == 2
    assert "nothing to convert" in capsys.readouterr().err


def test_the_drawn_world_is_checked_like_any_data(tmp_path, capsys):
    assert Data.main(["check", "toy", "--data_root", str(tmp_path)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "configs/datasets/toy.yaml says what belongs where." in shown
    write_world(tmp_path, WorldConfig(train_images=1, val_images=1, evaluation_images=2))
    assert Data.main(["check", "toy", "--data_root", str(tmp_path)]) == 0
    assert re.search(r"^toy +complete +2 images, 2 labels$", capsys.readouterr().out, re.MULTILINE)


def test_without_a_data_folder_everything_is_missing_and_nothing_can_be_converted(tmp_path, capsys):
    root = tmp_path / "data"
    assert Data.main(["check", "--data_root", str(root)]) == 1
    shown = capsys.readouterr().out
    assert shown.count(" missing ") == len(BENCHMARKS) and str(root / "VOCdevkit") in shown
    assert Data.main(["convert", "--data_root", str(root)]) == 2
    message = capsys.readouterr().err
    assert f"there is no data folder {root}" in message and "data check" in message


def unpacked(root, key, target, stems=("a", "b", "c")):
    """A data set whose folder (`VOCdevkit/VOC2012`) lies at another place."""
    put(root / "made", key, stems)
    kept = {"voc": "VOCdevkit/VOC2012", "ade20k": "ade/ADEChallengeData2016"}[key]
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    (root / "made" / kept).rename(root / target)
    shutil.rmtree(root / "made")


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("voc", "VOC2012_train_val/VOC2012_train_val"),
        ("voc", "VOCtrainval_11-May-2012/VOCdevkit/VOC2012"),
        ("ade20k", "ADEChallengeData2016"),
        ("ade20k", "downloads/ade20k/ADEChallengeData2016"),
    ],
)
def test_the_command_that_is_printed_is_enough_to_get_going(key, place, tmp_path):
    root = tmp_path / "my data"
    unpacked(root, key, place)
    _, problems = look(root, key)
    for command in re.findall(r"link it \((.*?)\)(?: [|]|$)", problems):
        subprocess.run(command, shell=True, check=True)
    report, problems = look(root, key)
    assert (report.num_images, report.num_labels, problems) == (3, 3, "")


def test_labels_in_a_folder_of_the_archive_are_found(tmp_path):
    row = put(tmp_path, "coco_stuff", ["1"])
    labels = tmp_path / row.labels
    labels.rename(labels.parent / "kept")
    found = labels.parent / "stuffthingmaps_trainval2017" / "val2017"
    save(found / "1.png")
    assert f"but {found} is there: link it (mkdir -p" in look(tmp_path, "coco_stuff")[1]
    assert Data.main(["convert", "--data_root", str(tmp_path), "--benchmarks", "stuff"]) == 1


@pytest.mark.parametrize(
    ("key", "folder", "said"),
    [
        ("voc", "VOCdevkit/VOC2012/SegmentationClassAug", "their numbers are not comparable"),
        ("cityscapes", "cityscapes/gtCoarse/val", "coarse labels, which are not evaluated"),
        ("ade20k", "ade/ADE20K_2021_17_01/images/validation", "the full release, another data"),
    ],
)
def test_data_that_cannot_stand_in_are_named(key, folder, said, tmp_path):
    if key != "ade20k":
        row = put(tmp_path, key, ["a"])
        shutil.rmtree(tmp_path / row.labels)
    save(tmp_path / folder / "a.png")
    _, problems = look(tmp_path, key)
    assert said in problems and "link it" not in problems


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_files_with_another_ending_are_seen(kind, tmp_path):
    row = put(tmp_path, "voc", ["a", "b"])
    suffix = {"images": ".jpg", "labels": ".png"}[kind]
    for path in (tmp_path / getattr(row, kind)).iterdir():
        path.rename(path.with_suffix(suffix.upper()))
    _, problems = look(tmp_path, "voc")
    assert f"but *{suffix.upper()} is there: rename the files." in problems


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("ade20k", (0, 149, 255), "reduced by one already"),
        ("voc", (255, 255, 3), "reduced by one already"),
        ("context59", (255, 255, 3), "reduced by one already"),
        ("voc", (1, 1, 16), "are all values off by one"),
        ("ade20k", (1, 2, 151), "all values seem one too high"),
        ("cityscapes", (1, 2, 19), "all values seem one too high"),
    ],
)
def test_labels_in_another_numbering_are_noticed(key, values, said, tmp_path):
    put(tmp_path, key, ["a", "b", "c"], labels=((values[0], values[1]), (values[1], values[2])))
    report, problems = look(tmp_path, key)
    assert said in problems + " ".join(report.warnings)


def test_official_labels_are_not_taken_for_others(tmp_path):
    for key, last in (("ade20k", 150), ("voc", 20), ("context", 59)):
        put(tmp_path, key, ["a", "b", "c"], labels=((0, 0), (last, 1)))
        report, problems = look(tmp_path, key)
        assert (problems, len(report.warnings)) == ("", 1), key


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    row = put(tmp_path, "ade20k", ["a"])
    opened = Path.open

    def forbidden(path, *args, **settings):
        if path.suffix == ".png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **settings)

    monkeypatch.setattr(Path, "open", forbidden)
    _, problems = look(tmp_path, "ade20k")
    assert "a.png may not be read: permission denied" in problems and "damaged" not in problems
    pair = tmp_path / row.images / "a.jpg", tmp_path / row.labels / "a.png"
    assert "may not be read" in pair_problem(*pair)


def test_commands_can_be_pasted_whatever_the_folder_is_called(tmp_path):
    root = tmp_path / "my data"
    root.mkdir()
    for key in BENCHMARKS:
        _, problems = look(root, key)
        assert f"'{root}'" in problems and f"--data_root {root}" not in problems


def test_a_data_root_that_is_not_there_is_said_first(tmp_path, capsys):
    Data.main(["check", "--data_root", str(tmp_path / "nope")])
    assert capsys.readouterr().out.startswith(f"! there is no data folder {tmp_path / 'nope'}.")
