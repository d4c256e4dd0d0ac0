"""Own data sets: what a YAML file may say, what is refused, and numbers checked with NumPy."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from talk2dino.benchmarks.data.check import check_data
from talk2dino.benchmarks.data.labels import LabelRules
from talk2dino.benchmarks.datasets import EvaluationSet, check_files
from talk2dino.benchmarks.job import Job, Run, evaluate_group
from talk2dino.benchmarks.results import PictureFolders, make_result, write_result
from talk2dino.benchmarks.scoring import Task
from talk2dino.benchmarks.table import find_benchmark, find_benchmarks, read_dataset
from talk2dino.cli.data import Data
from talk2dino.cli.evaluate import Evaluate
from talk2dino.config import build
from talk2dino.methods.registry import find_method, load_segmenter
from talk2dino.segmenter import ClassQuery, ClassWords
from talk2dino.sizes import Protocol

from .conftest import evaluation_of

BASE = {"images": "images", "labels": "labels", "classes": ["cat", "dog", "tree"]}


@pytest.fixture
def make(tmp_path):
    """Write a data set: file stems with label arrays, and keys of the YAML file; its path."""

    def make(labels=None, suffix=".png", **keys):
        labels = {"a": [[0, 1], [2, 255]]} if labels is None else labels
        for stem, values in labels.items():
            values = np.asarray(values, np.uint8 if np.max(values) < 256 else np.uint16)
            image, label = tmp_path / f"images/{stem}.jpg", tmp_path / f"labels/{stem}{suffix}"
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            grey = np.resize(values.astype(np.uint8), (*values.shape[:2], 3))
            Image.fromarray(grey).save(image)
            if suffix == ".npy":
                np.save(label, values)
            else:
                Image.fromarray(values).save(label)
        if suffix != ".png":
            keys = {"label_suffix": suffix, **keys}
        path = tmp_path / "mine.yaml"
        content = {name: value for name, value in {**BASE, **keys}.items() if value != "absent"}
        path.write_text(yaml.safe_dump(content))
        return path

    return make


def label(path, index=0):
    """The class ids of an image, with 255 or 65535 as -1."""
    dataset = EvaluationSet(read_dataset(path), "data")
    check_files(dataset)
    found = dataset.read_label(index)
    ignored = 255 if found.dtype == np.uint8 else 65535
    return np.where(found == ignored, -1, found.astype(int)).tolist()


def refused(path, data_root="data"):
    """What is said of a data set that cannot be evaluated."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        check_files(EvaluationSet(read_dataset(path, data_root), data_root))
    return str(error.value)


@pytest.mark.parametrize(
    ("values", "keys", "expected"),
    [
        ([[0, 1], [2, 255]], {}, [[0, 1], [2, -1]]),
        ([[0, 1], [3, 9]], {"reduce_zero_label": True, "ignore": 9}, [[-1, 0], [2, -1]]),
        ([[0, 1], [3, 255]], {"reduce_zero_label": True}, [[-1, 0], [2, -1]]),
        ([[5, 6], [7, 0]], {"shift": -5, "ignore": [0, 255]}, [[0, 1], [2, -1]]),
        ([[9, 8], [7, 255]], {"values": {9: 0, 8: 2, 7: 255}}, [[0, 2], [-1, -1]]),
        ([[9, 8], [7, 255]], {"values": {9: 0, 8: 2}, "unknown": "ignore"}, [[0, 2], [-1, -1]]),
        ([[0, 1], [255, 1]], {"ignore": [], "values": {255: 0}, "shift": 1}, [[1, 2], [0, 2]]),
        ([[4, 30], [31, 255]], {"classes": {4: "cat", 30: "dog", 31: "x"}}, [[0, 1], [2, -1]]),
        ([[0, 1], [2, 65535]], {}, [[0, 1], [2, -1]]),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_what_the_values_of_a_label_file_mean(make, suffix, values, keys, expected):
    path = make({"a": values}, suffix, **keys)
    assert label(path) == expected
    rules = read_dataset(path).rules
    kept = json.loads(json.dumps(dataclasses.asdict(rules)))
    assert build(LabelRules, kept, "result.json", exact=True) == rules


def test_colours_are_classes_by_a_mapping_given_directly_or_by_a_palette(make, tmp_path):
    colours = [[[255, 0, 0], [0, 255, 0]], [[9, 9, 9], [0, 255, 0]]]
    values = [[[255, 0, 0], 2], [[0, 255, 0], 0], [[9, 9, 9], 255]]
    path = make({"a": colours}, values=values)
    assert label(path) == [[2, 0], [-1, 0]]
    image = Image.fromarray(np.asarray(colours, np.uint8)).quantize(3)
    image.save(tmp_path / "labels" / "a.png")
    assert image.mode == "P" and label(path) == [[2, 0], [-1, 0]]
    path = make({"a": colours}, values=values[:2])
    assert "1 pixels with colour [9, 9, 9]; mine has the labels [0, 255, 0], [" in refused(path)
    assert label(make({"a": colours}, values=values[:2], unknown="ignore")) == [[2, 0], [-1, 0]]


def test_mmsegmentations_names_are_the_same_data_set(make):
    ours = make(
        split="list.txt",
        image_suffix=".jpg",
        label_suffix="_x.png",
        ignore=[7],
        palette=[[1, 2, 3]] * 3,
    )
    expected = read_dataset(ours)
    content = {
        "data_prefix": {"img_path": "images", "seg_map_path": "labels"},
        "metainfo": {"classes": BASE["classes"], "palette": [[1, 2, 3]] * 3},
        "ann_file": "list.txt",
        "img_suffix": ".jpg",
        "seg_map_suffix": "_x.png",
        "ignore_index": 7,
    }
    ours.write_text(yaml.safe_dump(content))
    assert read_dataset(ours) == expected
    ours.write_text(yaml.safe_dump({**content, "images": "images"}))
    with pytest.raises(ValueError, match="images is given twice, once as images"):
        read_dataset(ours)


def test_sub_folders_lists_and_several_suffixes(make, tmp_path, caplog):
    path = make({stem: [[0]] for stem in ("b", "x/a", "x/y/c")}, image_suffix=[".jpg", ".jpeg"])
    (tmp_path / "images/x/a.jpg").rename(tmp_path / "images/x/a.jpeg")
    Image.new("L", (1, 1)).save(tmp_path / "images" / "unlabelled.jpg")
    dataset = EvaluationSet(read_dataset(path), tmp_path / "nowhere")
    check_files(dataset)
    assert [s.image for s in dataset.samples] == [
        "images/b.jpg",
        "images/x/a.jpeg",
        "images/x/y/c.jpg",
    ]
    assert dataset.data_root == tmp_path
    assert "mine: 1 images without a label, left out: unlabelled.jpg" in caplog.text
    path = make({}, image_suffix=[".jpg", ".jpeg"], split="list.txt")
    (tmp_path / "list.txt").write_text("x/a\nb\n")
    assert [s.name for s in EvaluationSet(read_dataset(path), "data").samples] == ["x/a", "b"]
    (tmp_path / "list.txt").write_text("x/a\nx/a\n")
    assert "lists more than once: x/a (2 times)" in refused(path)
    (tmp_path / "list.txt").write_text("x/a\n../labels/b\n")
    assert "not in " in refused(path) and "../labels/b. See" in refused(path)
    (tmp_path / "list.txt").write_text("x/a\nnot/there\n")
    assert "1 of 2 image files are missing" in refused(path)
    (tmp_path / "list.txt").unlink()
    assert re.search("mine: there is no .*list.txt", refused(path))
    (tmp_path / "images/b.jpeg").touch()
    assert "several images belong to one label: b.jpeg, b.jpg" in refused(
        make({}, image_suffix=[".jpg", ".jpeg"])
    )


def test_folders_are_below_the_data_root_or_beside_the_file(make, tmp_path):
    path = make()
    other = tmp_path / "elsewhere" / "mine.yaml"
    other.parent.mkdir()
    other.write_text(path.read_text())
    message = refused(other, tmp_path / "nowhere")
    assert "mine: there is no " in message and "keys images, labels, split" in message
    dataset = EvaluationSet(read_dataset(other, tmp_path), tmp_path)
    assert (dataset.data_root, dataset.samples[0].image) == (tmp_path, "images/a.jpg")
    names = tmp_path / "names.txt"
    names.write_text("# by hand\ncat; kitten\n\ndog\ntree\n")
    other.write_text(yaml.safe_dump({**BASE, "classes": "names.txt", "data_root": "."}))
    assert read_dataset(other, tmp_path).words == (("cat", "kitten"), ("dog",), ("tree",))
    with pytest.raises(FileNotFoundError, match="classes: no file .*names.txt or .*names.txt"):
        read_dataset(other, tmp_path / "nowhere")
    names.write_text("cat; kitten\ndog; kitten\n")
    with pytest.raises(ValueError, match="names.txt, line 2: 'kitten' is there twice, see line 1"):
        read_dataset(other, tmp_path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"label_sufix": ".png"}, "unknown key 'label_sufix'.*Did you mean 'label_suffix'"),
        ({"ignored": 0}, "unknown key 'ignored'.*ignore, shift, .*Did you mean 'ignore'"),
        ({"background": True, "bg_thresh": float("nan")}, r"bg_thresh must lie in \[0, 1\]"),
        ({"metainfo": {"clases": []}}, "unknown key 'metainfo.clases'. Known: "),
        ({"metainfo": "x"}, "unknown key 'metainfo'"),
        ({"images": "absent"}, "'images:' is missing"),
        ({"classes": "absent"}, "classes must be a list of names"),
        ({"classes": []}, "0 classes; 1 to 65535"),
        ({"classes": ["a", "b", "a"]}, "class 2: 'a' is there twice, see class 0"),
        ({"classes": ["a", "b; "]}, "class 1: an empty word in 'b; '"),
        ({"classes": ["a", True]}, "class 1: a class name is text, found True. Write it in quotes"),
        ({"classes": ["a", "background"], "background": True}, "class 0 alone is the background"),
        ({"background": "yes"}, "background must be bool, got 'yes'"),
        ({"bg_thresh": 0.5}, "bg_thresh without `background: true`"),
        ({"bg_thresh": "x", "background": True}, "bg_thresh must be float"),
        ({"name": "my data"}, "the name 'my data' becomes part of file names"),
        ({"image_suffix": []}, "images, labels and image_suffix must not be empty"),
        ({"ignore": "255"}, "ignore must be int or list or null, got '255'"),
        ({"shift": "1"}, "shift must be int"),
        ({"shift": 1, "reduce_zero_label": True}, "reduce_zero_label is a shift of -1"),
        ({"unknown": "error"}, "unknown may be `ignore`"),
        ({"unknown": "ignore"}, "of what is in no `values`"),
        ({"values": [1, 2]}, r"values.0. must be tuple, got 1"),
        ({"values": {70000: 1}}, "must be label values, found 70000"),
        ({"values": [[[0, 0, 300], 1]]}, "a colour is .r, g, b. of 0 to 255"),
        ({"values": [[[0, 0, 3], 1], [[0, 0, 3], 2]]}, "values lists more than once"),
        ({"values": {1: 9}}, "no class has the id 9"),
        ({"palette": [[0, 0, 0]]}, "palette: 3 classes need as many"),
        ({"palette": "x"}, "palette: no file"),
        ({"protocol": {"windw": 3}}, "unknown key 'windw'.*Did you mean 'window'"),
        ({"protocol": {"window": 100}}, "stride of 224 leaves gaps"),
        ({"label_suffix": "_no.png"}, "no image has a label.*images holds a.jpg.*labels holds a.p"),
    ],
)
def test_a_file_that_means_nothing_is_refused(make, keys, said):
    assert re.search(said, refused(make(**keys))), refused(make(**keys))


def test_labels_that_mean_nothing_are_refused_with_value_file_and_count(make, tmp_path):
    text = refused(make({"a": [[0, 7], [7, 3]]}))
    assert "a.png: 3 pixels with label 7, 3; mine has the labels 0 to 2." in text
    assert "ignore, shift and values" in text
    text = refused(make({"a": [[0, 65535], [1, 65535]]}, ignore=255))
    assert "2 pixels with label 65535" in text and "a file of 16 bits, where 65535 is" in text
    assert "colours, not class numbers" in refused(make({"a": np.zeros((2, 2, 3))}))
    assert "values:` are colours" in refused(make(values=[[[0, 0, 0], 1]]))
    Image.new("L", (5, 4)).save(tmp_path / "labels" / "a.png")
    assert "is 5x4 pixels, but its image is 2x2" in refused(make({}))
    path = make({"b": [[0]]}, ".npy")
    np.save(tmp_path / "labels" / "b.npy", np.zeros((1, 1)))
    assert "float64 (1, 1); labels are (H, W) uint8 or uint16" in refused(path)
    (tmp_path / "labels" / "b.npy").write_bytes(b"\x93NUMPY")
    assert "no NPY file, or damaged" in refused(path)


def test_data_check_says_what_is_there(make, tmp_path, capsys):
    path = make({"a": [[0, 1]], "b": [[2, 255]]})
    Image.new("L", (1, 1)).save(tmp_path / "images" / "bare.jpg")
    assert Data.main(["check", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "mine differs 2 images, 2 labels" in shown and "0 cat 25 %" in shown
    assert "255 (ignored) 25 %" in shown
    assert "1 images without a label, left out: bare.jpg" in shown
    path = make({"a": [[0, 9]]})
    assert Data.main(["check", str(path), "--data_root", str(tmp_path)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 pixels with label 9" in shown and "9 (no class)" in shown
    report = check_data(read_dataset(make({}, split="list.txt")), "data", 20)
    assert report.state == "missing"
    (tmp_path / "list.txt").write_text("a\nc\n")
    report = check_data(read_dataset(make({}, split="list.txt")), "data", 20)
    assert "1 of 2 image files are missing" in report.problems[0] and report.state == "incomplete"
    make({"a": np.zeros((3, 3))}, label_suffix=".png")
    Image.new("L", (1, 1)).save(tmp_path / "labels" / "a.png")
    assert Data.main(["check", str(make({}))]) == 1
    assert "is 1x1 pixels, but its image is 3x3" in " ".join(capsys.readouterr().out.split())
    assert Data.main(["check", str(tmp_path / "no.yaml")]) == 2


def test_names_belong_to_one_data_set(make, tmp_path):
    path = make(name="voc")
    with pytest.raises(ValueError, match="voc is the name of a benchmark"):
        find_benchmark(str(path))
    path = make()
    other = tmp_path / "x" / "mine.yaml"
    other.parent.mkdir()
    other.write_text(path.read_text())
    with pytest.raises(ValueError, match="two data sets are called mine"):
        find_benchmarks(f"{path},{other}")
    assert [row.key for row in find_benchmarks(f"voc,{path},{path}")] == ["voc", "mine"]


def test_the_full_releases_need_the_users_list_of_names(tmp_path):
    for key, name in (
        ("ade847", "ADE20K_2021_17_01/classes_847.txt"),
        ("pc459", "VOCdevkit/VOC2010/classes_459.txt"),
    ):
        with pytest.raises(FileNotFoundError, match=name):
            find_benchmark(key, tmp_path)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("wall; walls\nfloor\n")
        row = find_benchmark(key, tmp_path)
        for folder, file in ((row.images, "a.jpg"), (row.labels, "a.tif")):
            (tmp_path / folder).mkdir(parents=True)
            pixels = np.array([[0, 65535], [1, 1]], np.uint16)
            Image.fromarray(pixels.astype(np.uint8) if "jpg" in file else pixels).save(
                tmp_path / folder / file
            )
        assert EvaluationSet(row, tmp_path).read_label(0).tolist() == [[0, 255], [1, 1]]


def test_words_and_sizes_of_the_file_win_over_a_methods(make):
    path = make(classes=["background; sky", "cat; kitten", "dog"], background=True)
    row = read_dataset(path)
    words = row.class_words(ClassWords(lambda name: (f"a {name}",), ("nothing",)))
    labels, found = words.lists(["cat", "dog"], 0.5)
    assert labels == ("background", "cat", "dog")
    assert found == [("sky",), ("cat", "kitten"), ("a dog",)]
    row = read_dataset(make(classes=["Turkey; poultry", "turkey", "dog"]))
    found = row.class_words(ClassWords(pooling="mean"))
    assert found.lists(row.classes, None)[1] == [("Turkey", "poultry"), ("turkey",), ("dog",)]
    assert found.pooling == "mean"
    row = read_dataset(make(protocol={"window": 300}))
    assert row.protocol == Protocol(window=300)
    assert row.with_protocol(Protocol(336, 2048, 224, 112)) == dataclasses.replace(
        row, protocol=Protocol(336, 2048, 300, 112)
    )


def test_python_takes_the_file_as_a_benchmark(make):
    path = make(
        classes=["cat; kitten", "dog"], protocol={"short_side": 112, "window": 112, "stride": 56}
    )
    segmenter = load_segmenter("toy", "seeded:0", benchmark=str(path))
    assert segmenter.protocol == Protocol(112, 2048, 112, 56)
    assert segmenter.query(["cat", "dog"]).owner.tolist() == [0, 0, 1]
    row = find_method("naclip_vitb").benchmark(read_dataset(make(protocol={"stride": 100})))
    assert row.protocol == Protocol(336, 2048, 224, 100)


def test_the_unified_protocol_keeps_what_the_file_says(make):
    method = find_method("naclip_toy", {"protocol": "unified"})
    row = method.benchmark(
        read_dataset(make(classes=["boat; ship", "dog"], protocol={"stride": 9}))
    )
    assert row.protocol == Protocol(stride=9)
    changes = method.changes(row, row.classes)
    assert "window 448 in place of 224" in changes
    assert not any("boat" in change or "stride" in change for change in changes)
    with pytest.raises(ValueError, match="mine has a background, but .* data sets of your own"):
        method.benchmark(read_dataset(make(background=True)))


def random_labels(classes, ignored, size=(28, 40)):
    generator = np.random.default_rng(classes)
    labels = {}
    for stem in ("a", "b/a", "b/c"):
        labels[stem] = generator.integers(0, classes, (7, 10)).repeat(4, axis=0).repeat(4, axis=1)
        labels[stem][:3] = ignored
    return labels


class ByGrey:
    """The class of a pixel is its grey level, spread over all classes."""

    def window_scores(self, windows, query):
        grey = windows.mean(dim=1, keepdim=True) / 255
        return -(grey - query.rows[None, :, :, None]).abs()


def evaluate_by_grey(path, tmp_path):
    """What `evaluate` does, with a model that needs no text."""
    dataset = EvaluationSet(read_dataset(path), "data")
    folders = PictureFolders(tmp_path / "maps" / "mine", truth=tmp_path / "truth" / "mine")
    settings = {"segmenter": {}, "bg_thresh": None, "classes": dataset.classes}
    run = Run("run", settings, dataset, evaluation_of(dataset.benchmark), folders)
    query = ClassQuery.of_rows(torch.linspace(0, 1, len(dataset.classes))[:, None])
    job = Job(Path("data"), tmp_path / "out", torch.device("cpu"))
    counts, timing = evaluate_group(job, [run], lambda runs: [Task(ByGrey(), query)])
    write_result(tmp_path / "out", "run", *make_result(run, counts["run"], timing))


KINDS = {
    "colours": (5, 255, ".png"),
    "tiff of 16 bits": (40, 65535, ".tif"),
    "a thousand classes": (1000, 65535, ".png"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_gives_the_numbers_that_numpy_gives(kind, make, tmp_path):
    classes, ignored, suffix = KINDS[kind]
    truth = random_labels(classes, ignored)
    keys = {
        "classes": [f"thing {number}" for number in range(classes)],
        "protocol": {"short_side": 28, "window": 28, "stride": 14},
    }
    stored = truth
    if kind == "colours":
        colours = np.random.default_rng(0).permutation(256)[: 3 * classes].reshape(-1, 3)
        palette = np.full((256, 3), 7)
        palette[:classes] = colours
        stored = {stem: palette[labels] for stem, labels in truth.items()}
        keys["values"] = [[c, n] for n, c in enumerate(colours.tolist())] + [[[7, 7, 7], 255]]
    path = make(stored, suffix, **keys)
    if kind == "colours":
        argv = ["--model", "toy", "--weights", "seeded:0", "--benchmarks", str(path)]
        argv += ["--output", str(tmp_path / "out"), "--save_predictions", str(tmp_path / "maps")]
        assert Evaluate.main([*argv, "--gt_qual_path", str(tmp_path / "truth")]) == 0
    else:
        evaluate_by_grey(path, tmp_path)
    (result,) = map(json.loads, (p.read_text() for p in (tmp_path / "out").glob("*.json")))
    pixels = np.zeros((3, classes))
    for stem, labels in truth.items():
        predicted = np.asarray(Image.open(tmp_path / "maps" / "mine" / f"{stem}.png"))
        assert predicted.dtype == (np.uint8 if classes <= 256 else np.uint16)
        guess, real = predicted[labels != ignored], labels[labels != ignored]
        pixels += [
            np.bincount(found, minlength=classes) for found in (real[real == guess], real, guess)
        ]
        coloured = np.asarray(
            Image.open(tmp_path / "truth" / "mine" / f"{stem}.png").convert("RGB")
        )
        assert (coloured[0, 0].tolist(), coloured.shape) == ([224, 224, 192], (28, 40, 3))
    hits, real, guess = pixels
    with np.errstate(invalid="ignore"):
        iou = 100 * hits / (real + guess - hits)
    assert result["mIoU"] == pytest.approx(np.nanmean(iou), abs=1e-3)
    assert result["aAcc"] == pytest.approx(100 * hits.sum() / real.sum(), abs=1e-3)
    assert real.sum() == 3 * 25 * 40 and hits.sum() > 0
    for value, expected in zip(result["per_class"].values(), iou, strict=True):
        assert (value is None) if np.isnan(expected) else value == pytest.approx(expected, abs=1e-3)
