"""Other programs' annotations become label PNGs and a YAML file: every pixel, by format."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from talk2dino.benchmarks.data.importing import FORMATS, plan_import
from talk2dino.benchmarks.datasets import EvaluationSet, check_files
from talk2dino.benchmarks.table import read_dataset
from talk2dino.cli.data import Data

VOC = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0)}
LABELS = np.array([[0, 1, 1, 2], [2, 2, 0, 255], [1, 0, 1, 0]])
"""What every source below means; 255 where it says nothing."""


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def painted(labels, colours):
    """(H, W, 3) of labels, by a table from label to colour."""
    pixels = np.zeros((*labels.shape, 3), np.uint8)
    for label, colour in colours.items():
        pixels[labels == label] = colour
    return pixels


def photo(folder, name):
    return save(folder / name, np.zeros((*LABELS.shape, 3)))


def import_it(form, source, output, *more):
    """Run the command; the data set that it wrote."""
    argv = ["import", form, str(source), "--output", str(output), "--nproc", "2", *more]
    assert Data.main(argv) == 0
    dataset = EvaluationSet(read_dataset(output / "dataset.yaml"), "nowhere")
    check_files(dataset)
    return dataset


def coco(folder, annotations, names=("thing", "stuff", "more"), split="val2017"):
    """A COCO JSON file of one image, with ids of categories that have gaps."""
    photo(folder / split, "000001.jpg")
    categories = [{"id": 10 * n + 3, "name": name} for n, name in enumerate(names)]
    image = {"id": 7, "file_name": "000001.jpg", "height": 3, "width": 4}
    content = {"images": [image], "categories": categories, "annotations": annotations}
    path = (
        folder
        / "annotations"
        / f"{'panoptic' if 'segments_info' in str(annotations) else 'instances'}_{split}.json"
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def panoptic(folder):
    ids = {0: 7, 1: 300, 2: 70000, 255: 0}
    segments = [{"id": ids[label], "category_id": 10 * label + 3} for label in range(3)]
    entry = {"image_id": 7, "file_name": "000001.png", "segments_info": segments}
    path = coco(folder, [entry])
    colours = {label: (n & 255, n >> 8 & 255, n >> 16) for label, n in ids.items()}
    save(path.with_suffix("") / "000001.png", painted(LABELS, colours))
    return path


def test_coco_panoptic(tmp_path, capsys):
    dataset = import_it("coco-panoptic", panoptic(tmp_path), tmp_path / "out")
    assert np.array_equal(dataset.read_label(0), LABELS)
    assert dataset.classes == ["thing", "stuff", "more"] and not dataset.benchmark.background
    path = tmp_path / "annotations" / "panoptic_val2017" / "000001.png"
    save(path, np.full((3, 4, 3), 9))
    Data.main(
        [
            "import",
            "coco-panoptic",
            str(path.parent.with_suffix(".json")),
            "--overwrite",
            "--output",
            str(tmp_path / "out"),
        ]
    )
    assert "000001.jpg: 592137" in capsys.readouterr().err
    assert (EvaluationSet(dataset.benchmark, "nowhere").read_label(0) == 255).all()


def test_coco_instances_draws_later_annotations_over_earlier_ones_and_crowds(tmp_path):
    square = [0, 0, 4, 0, 4, 2, 0, 2]  # the upper two rows
    crowd = {"size": [3, 4], "counts": [2, 1, 2, 1, 6]}  # column by column: (2, 0) and (2, 1)
    annotations = [
        {"image_id": 7, "category_id": 3, "segmentation": [square], "iscrowd": 0},
        {"image_id": 7, "category_id": 13, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]},
        {"image_id": 7, "category_id": 23, "segmentation": crowd, "iscrowd": 1},
        {"image_id": 7, "category_id": 3, "segmentation": []},
    ]
    dataset = import_it("coco-instances", coco(tmp_path, annotations), tmp_path / "out")
    assert dataset.classes == ["background", "thing", "stuff", "more"]
    assert dataset.benchmark.background
    expected = [[2, 2, 1, 1], [2, 2, 1, 1], [3, 3, 0, 0]]
    assert dataset.read_label(0).tolist() == expected


def test_more_than_255_classes_are_16_bit(tmp_path):
    square = [[0, 0, 4, 0, 4, 3, 0, 3]]
    annotations = [{"image_id": 7, "category_id": 10 * 299 + 3, "segmentation": square}]
    path = coco(tmp_path, annotations, [f"thing {n}" for n in range(300)])
    dataset = import_it("coco-instances", path, tmp_path / "out")
    assert dataset.read_label_file(0).dtype == np.uint16
    assert (dataset.read_label(0) == 300).all()


@pytest.mark.parametrize("palette", [False, True])
def test_voc_colour(palette, tmp_path):
    photo(tmp_path / "JPEGImages", "a.jpg")
    labels = np.where(LABELS == 2, 8, LABELS)
    pixels = painted(labels, {**VOC, 255: (224, 224, 192)})
    path = save(tmp_path / "SegmentationClass" / "a.png", pixels)
    if palette:
        Image.open(path).quantize(4).save(path)
    dataset = import_it("voc-colour", tmp_path, tmp_path / "out")
    assert np.array_equal(dataset.read_label(0), labels)
    assert dataset.classes[:2] == ["background", "aeroplane"] and len(dataset.classes) == 21
    (tmp_path / "class_names.txt").write_text("floor\nwall\n\nsky\n")
    save(path, painted(LABELS, {**VOC, 255: (224, 224, 192)}))
    dataset = import_it("voc-colour", tmp_path, tmp_path / "out", "--overwrite")
    assert np.array_equal(dataset.read_label(0), LABELS)
    assert dataset.classes == ["floor", "wall", "sky"] and not dataset.benchmark.background


def test_cvat_puts_the_background_first(tmp_path, capsys):
    photo(tmp_path / "JPEGImages", "a.png")
    text = "# label:color_rgb:parts:actions\ncat:250,50,83::\nbackground:0,0,0::\ndog:1,2,3::\n"
    (tmp_path / "labelmap.txt").write_text(text)
    colours = {0: (0, 0, 0), 1: (250, 50, 83), 2: (1, 2, 3), 255: (9, 9, 9)}
    save(tmp_path / "SegmentationClass" / "a.png", painted(LABELS, colours))
    dataset = import_it("cvat", tmp_path, tmp_path / "out")
    assert np.array_equal(dataset.read_label(0), LABELS)
    assert dataset.classes == ["background", "cat", "dog"] and dataset.benchmark.background
    assert "a.png: [9, 9, 9]" in capsys.readouterr().err
    for line, said in (("cat;250", "no name:r,g,b:: in"), ("cow:1,2,3::", "dog has this colour")):
        (tmp_path / "labelmap.txt").write_text(text + line)
        with pytest.raises(ValueError, match=f"line 5: {said}"):
            plan_import("cvat", tmp_path, tmp_path / "out")


def test_roboflow(tmp_path):
    photo(tmp_path, "a.jpg")
    save(tmp_path / "a_mask.png", np.where(LABELS == 2, 7, LABELS))
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n7, dog\n")
    dataset = import_it("roboflow", tmp_path, tmp_path / "out")
    assert np.array_equal(dataset.read_label(0), LABELS)
    assert dataset.classes == ["background", "cat", "dog"] and dataset.benchmark.background


@pytest.mark.parametrize("coloured", [False, True])
def test_datumaro(coloured, tmp_path):
    photo(tmp_path / "images", "a.jpg")
    meta = {"label_map": {"0": "road", "1": "car", "2": "sky"}}
    pixels = LABELS
    if coloured:
        meta["segmentation_colors"] = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
        pixels = painted(LABELS, {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 255: (5, 5, 5)})
    (tmp_path / "dataset_meta.json").write_text(json.dumps(meta))
    save(tmp_path / "masks" / "a.png", pixels)
    dataset = import_it("datumaro", tmp_path, tmp_path / "out")
    assert np.array_equal(dataset.read_label(0), LABELS)
    assert dataset.classes == ["road", "car", "sky"] and not dataset.benchmark.background


def test_an_import_goes_on_where_it_was_and_overwrites_nothing_of_others(tmp_path, capsys):
    path, out = panoptic(tmp_path), tmp_path / "out"
    import_it("coco-panoptic", path, out)
    kept = (out / "labels" / "000001.png").stat().st_mtime_ns
    import_it("coco-panoptic", path, out)
    assert "0 written, 1 were there already" in capsys.readouterr().out
    assert (out / "labels" / "000001.png").stat().st_mtime_ns == kept
    assert yaml.safe_load((out / "dataset.yaml").read_text())["images"] == str(tmp_path / "val2017")
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "other"
    path.write_text(json.dumps(content))
    assert Data.main(["import", "coco-panoptic", str(path), "--output", str(out)]) == 1
    assert "classes.txt belongs to another import" in capsys.readouterr().err
    assert not [p for p in out.rglob("*") if ".tmp-" in p.name]


def test_wrong_sources_are_refused(tmp_path, capsys):
    path = panoptic(tmp_path)
    text = path.read_text()
    for change, said in (
        (('"images"', '"imags"'), "is not coco-panoptic: KeyError 'images'"),
        (('"file_name": "000001.jpg"', '"file_name": "../1.jpg"'), "'../1.jpg' is no file below"),
        (('"file_name": "000001.jpg"', '"file_name": "2.jpg"'), "Name the folder with --images"),
        (('"id": 13', '"id": 3'), "categories: id lists more than once"),
    ):
        path.write_text(text.replace(*change))
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            plan_import("coco-panoptic", path, tmp_path / "out")
    path.write_text(text)
    labels, _ = plan_import("coco-panoptic", path, tmp_path / "out", tmp_path / "val2017")
    assert len(labels) == 1
    (path.with_suffix("") / "000001.png").unlink()
    assert Data.main(["import", "coco-panoptic", str(path), "--output", str(tmp_path / "out")]) == 1
    assert "1 files could not be converted" in capsys.readouterr().err
    assert not (tmp_path / "out" / "dataset.yaml").exists()
    rubbish = [{"image_id": 7, "category_id": 3, "segmentation": [["x"]]}]
    path = coco(tmp_path, rubbish)
    assert (
        Data.main(["import", "coco-instances", str(path), "--output", str(tmp_path / "out2")]) == 1
    )
    assert "image 7: a segmentation cannot be read" in capsys.readouterr().err
    for form in ("roboflow", "datumaro", "cvat", "voc-colour"):
        with pytest.raises(FileNotFoundError):
            plan_import(form, tmp_path, tmp_path / "out")
    save(tmp_path / "SegmentationClass" / "b.png", LABELS)
    with pytest.raises(FileNotFoundError, match="1 of 1 labels have no image in .*for example b"):
        plan_import("voc-colour", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["import", "coco"], "say `data import FORMAT SOURCE --output FOLDER`"),
        (["import", "coco", "x", "--output", "o"], f"Known: {', '.join(FORMATS)}"),
        (["import", "cvat", "no_such", "--output", "o"], "no such file or folder to import"),
        (["convert", "mine.yaml"], "convert needs no 'mine.yaml'"),
    ],
)
def test_wrong_arguments_are_refused(argv, said, capsys):
    assert Data.main(argv) == 2
    assert said in capsys.readouterr().err
