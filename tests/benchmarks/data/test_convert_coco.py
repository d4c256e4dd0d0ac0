"""Conversion of published labels: the tables, and what happens around the files."""

import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from talk2dino.benchmarks.data.convert import (
    OBJECT_SUFFIX,
    STUFF_SUFFIX,
    plan_cityscapes,
    plan_coco,
    run_conversions,
)
from talk2dino.benchmarks.data.labels import read_labels
from talk2dino.cli.data import ConvertCoco


def save(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def coco(tmp_path):
    """Two raw labels for validation and one for training."""
    folder = tmp_path / "coco" / "annotations"
    save(folder / "val2017" / "000000000001.png", [[0, 89], [91, 255]])
    save(folder / "val2017" / "000000000002.png", [[10, 12], [181, 1]])
    save(folder / "train2017" / "000000000003.png", [[3, 3], [3, 3]])
    return tmp_path / "coco"


def converted(plan):
    """What every raw value from 0 to 255 becomes, and those that mean nothing."""
    labels, unknown = plan[0].convert()
    return labels.ravel().tolist(), unknown


@pytest.fixture
def every_value(tmp_path):
    """A COCO and a Cityscapes label with all values."""
    values = np.arange(256).reshape(16, 16)
    save(tmp_path / "annotations" / "val2017" / "1.png", values)
    save(tmp_path / "gtFine" / "val" / "ulm" / "a_gtFine_labelIds.png", values)
    return tmp_path


def test_the_80_objects_are_numbered_from_1_and_the_rest_is_background(every_value):
    labels, unknown = converted(plan_coco(every_value, every_value, OBJECT_SUFFIX))
    assert [labels[v] for v in (0, 10, 12, 24, 26, 89)] == [1, 11, 12, 24, 25, 80]
    assert sorted(set(labels)) == list(range(81)) and set(labels[90:]) == {0}
    assert 11 in unknown and not {181, 255} & set(unknown)


def test_the_171_stuff_classes_are_numbered_from_0(every_value):
    labels, unknown = converted(plan_coco(every_value, every_value, STUFF_SUFFIX))
    assert [labels[v] for v in (0, 89, 91, 181, 255, 11)] == [0, 79, 80, 170, 255, 255]
    assert sorted(set(labels)) == [*range(171), 255] and len(unknown) == 256 - 172


def test_cityscapes_ids_become_train_ids(every_value):
    labels, unknown = converted(plan_cityscapes(every_value))
    road, pole, rider, train, bicycle = 7, 17, 25, 31, 33
    assert [labels[v] for v in (road, pole, rider, train, bicycle)] == [0, 5, 12, 16, 18]
    ego_vehicle, caravan, trailer = 1, 29, 30
    assert [labels[v] for v in (0, ego_vehicle, caravan, trailer)] == [255] * 4
    assert unknown == list(range(34, 255))


def test_the_command_writes_beside_the_input_and_goes_on_where_it_stopped(coco, capsys):
    assert ConvertCoco.main([str(coco), "-o", str(coco), "--nproc", "2"]) == 0
    folder = coco / "annotations"
    written = read_labels(folder / "val2017" / f"000000000001{OBJECT_SUFFIX}.png")
    assert written.tolist() == [[1, 80], [0, 0]]
    assert (folder / "train2017" / f"000000000003{OBJECT_SUFFIX}.png").is_file()
    assert "3 written, 0 were there" in capsys.readouterr().out
    (folder / "val2017" / f"000000000002{OBJECT_SUFFIX}.png").unlink()
    assert ConvertCoco.main([str(coco)]) == 0  # converted files are not taken for raw ones
    assert f"*{OBJECT_SUFFIX}.png: 1 written, 2 were there" in capsys.readouterr().out
    assert not [path for path in folder.rglob("*") if "tmp" in path.name]


def test_another_output_folder_gets_the_same_tree(coco, tmp_path):
    assert ConvertCoco.main([str(coco), "-o", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out" / "annotations").glob("*/*.png"))) == 3
    assert len(list(coco.rglob("*.png"))) == 3


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF"])
def test_a_label_in_another_format_is_named_and_not_converted(coco, capsys, format):
    path = coco / "annotations" / "val2017" / "000000000001.png"
    Image.open(path).convert("RGB" if format == "WEBP" else "L").save(path, format=format)
    assert ConvertCoco.main([str(coco)]) == 1
    assert f"000000000001.png is no lossless PNG but {format}" in capsys.readouterr().err


def test_grey_of_four_bits_is_refused_as_it_would_be_stretched(tmp_path):
    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0\x12")), (b"IEND", b""))
    chunks = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts
    ]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(ValueError, match="a.png has pixels of mode L;4"):
        read_labels(tmp_path / "a.png")


def test_a_damaged_and_a_coloured_label_are_named_and_the_others_converted(coco, capsys):
    folder = coco / "annotations" / "val2017"
    (folder / "000000000004.png").write_bytes(b"")
    Image.new("RGB", (4, 4)).save(folder / "000000000005.png")
    assert ConvertCoco.main([str(coco)]) == 1
    shown = capsys.readouterr()
    assert "3 written" in shown.out
    assert "000000000004.png is empty (0 bytes)" in shown.err
    assert "000000000005.png holds RGB colours" in shown.err
    assert not list(folder.glob(f"00000000000[45]{OBJECT_SUFFIX}.png"))


def test_values_no_one_defined_are_warned_about(coco, capsys):
    save(coco / "annotations" / "val2017" / "000000000006.png", [[11, 200]])
    assert ConvertCoco.main([str(coco)]) == 0
    assert "000000000006.png: 11, 200" in capsys.readouterr().err


def test_wrong_folders_are_named_with_the_file_to_download(tmp_path, capsys):
    assert ConvertCoco.main([str(tmp_path / "no")]) == 2
    assert ConvertCoco.main([str(tmp_path), "--nproc", "0"]) == 2
    assert ConvertCoco.main([str(tmp_path)]) == 1
    assert "stuffthingmaps_trainval2017.zip" in capsys.readouterr().err
    (tmp_path / "annotations" / "val2017").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no raw label files"):
        plan_coco(tmp_path, tmp_path, OBJECT_SUFFIX)
    with pytest.raises(FileNotFoundError, match=r"gtFine_trainvaltest\.zip"):
        plan_cityscapes(tmp_path)


def test_cityscapes_labels_are_written_beside_the_official_ones(tmp_path):
    city = tmp_path / "gtFine" / "val" / "ulm"
    save(city / "ulm_000000_000019_gtFine_labelIds.png", [[7, 33], [1, 26]])
    outcome = run_conversions(plan_cityscapes(tmp_path), workers=1)
    assert (outcome.written, outcome.failures, outcome.unknown) == (1, [], [])
    converted = read_labels(city / "ulm_000000_000019_gtFine_labelTrainIds.png")
    assert converted.tolist() == [[0, 18], [255, 13]]


def test_an_interruption_leaves_only_complete_files(coco):
    plan = plan_coco(coco, coco, OBJECT_SUFFIX)
    threads = threading.active_count()

    class StopAfterOne:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def update(self, n):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_conversions(plan, 1, progress=lambda total, done: StopAfterOne())
    made = [conversion.target for conversion in plan if conversion.target.exists()]
    assert 1 <= len(made) <= 3
    assert all(read_labels(path).size == 4 for path in made)
    assert threading.active_count() <= threads
    assert run_conversions(plan, 2).present == len(made)


def test_hidden_companions_are_no_labels(tmp_path):
    label = save(tmp_path / "annotations/val2017/1.png", [[0]])
    raw = save(tmp_path / "gtFine/val/bonn/a_gtFine_labelIds.png", [[0]])
    for path in (label, raw):
        path.with_name(f"._{path.name}").write_bytes(b"metadata")
    found = plan_coco(tmp_path, tmp_path, STUFF_SUFFIX) + plan_cityscapes(tmp_path)
    assert [conversion.source for conversion in found] == [label, raw]
