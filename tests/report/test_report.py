"""The report: from result files as the evaluation writes them to one page and its plots."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from talk2dino.cli.report import Report
from talk2dino.report.pictures import make_example, read_maps
from talk2dino.report.plots import draw_class_bars, figure_svg, shown_classes
from talk2dino.report.runs import find_runs, methods, pick_examples, top_confusions
from tests.report.conftest import CLASSES, NUM_IMAGES, write_run


def test_one_page_without_network_and_plots_beside_it(results, capsys):
    assert Report.main([str(results)]) == 0
    page = (results / "report.html").read_text()
    links = re.findall(r"(?:src|href)=['\"]([^'\"]+)", page)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert "<script" not in page and "@import" not in page
    assert "cat &amp; &lt;dog&gt;" in page and "<dog>" not in page
    assert page.count("data:image/jpeg") == 6 * 4 + 6 * 3  # image, truth and one per run
    plots = sorted(path.name for path in (results / "report_plots").iterdir())
    assert plots == [
        "ade20k_classes.png",
        "ade20k_examples.png",
        "ade20k_toy_33333333_confusion.png",
        "overview.png",
        "voc_classes.png",
        "voc_examples.png",
        "voc_toy_11111111_confusion.png",
        "voc_toy_pamr_22222222_confusion.png",
    ]
    assert "and 8 plots" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_a_report_is_not_overwritten_unasked(results, capsys):
    (results / "report.html").write_text("mine")
    assert Report.main([str(results)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (
        Report.main([str(results / "ade20k_toy_33333333.json"), "--examples", "0", "--overwrite"])
        == 0
    )
    assert "mine" not in (results / "report.html").read_text()


def test_best_median_and_worst_are_ranked_by_the_image(results):
    runs, _ = find_runs([results / "voc_toy_11111111.json"])
    scores = runs[0].image_scores[""]
    assert scores["images/0.png"] == 100 and scores["images/5.png"] == min(scores.values())
    picked = pick_examples(runs, 1)
    assert picked["best"] == ["images/0.png"] and picked["worst"] == ["images/5.png"]
    median = sorted(scores.values())[NUM_IMAGES // 2]
    assert scores[picked["median"][0]] == median
    names = [name for names in pick_examples(runs, 3).values() for name in names]
    assert len(names) == len(set(names)) == 6


def test_an_image_without_labelled_pixels_is_not_ranked(results):
    path = results / "voc_toy_11111111.npz"
    arrays = dict(np.load(path))
    arrays["union"][3] = arrays["intersect"][3] = 0
    np.savez(path, **arrays)
    runs, _ = find_runs([path.with_suffix(".json")])
    assert "images/3.png" not in runs[0].image_scores[""]


def test_the_largest_mistakes_are_named(results):
    runs, _ = find_runs([results / "voc_toy_11111111.json"])
    wrong = sum(min(number, 3) for number in range(NUM_IMAGES))  # of the first row's background
    ((true, predicted, share), *_) = top_confusions(runs[0], 5)
    assert (true, predicted) == ("background", "cat & <dog>")
    assert share == pytest.approx(100 * wrong / (NUM_IMAGES * 47))


def test_runs_of_one_name_are_told_apart(results, data, tmp_path):
    write_run(data, results, "voc_toy_44444444", bg_thresh=0.6)
    write_run(data, tmp_path / "other")
    runs, _ = find_runs([results, tmp_path / "other"])
    labels = [run.label for run in runs if run.benchmark == "voc"]
    assert len(set(labels)) == len(labels) == 4
    assert "toy, threshold 0.6" in labels and "toy + PAMR" in labels
    assert [run.benchmark for run in runs] == ["voc"] * 4 + ["ade20k"]  # the paper's order
    assert len(methods(runs)) == 4  # ADE20K shares a label with VOC


def test_a_method_has_one_name_on_all_benchmarks(data, tmp_path):
    folder = tmp_path / "results"
    for place, weights in enumerate(("seeded:3", "sha256:0123456789abcdef")):
        for key, threshold in (("voc", 0.55 - place / 100), ("voc20", None)):
            segmenter = {"projection_weights": weights, "clean_background": key == "voc"}
            changes = {"benchmark": key, "bg_thresh": threshold}
            name = f"{key}_toy_{place}{len(key)}"
            write_run(data, folder, name, settings={"segmenter": segmenter}, **changes)
    runs = find_runs([folder])[0]
    assert methods(runs) == ["toy, weights 01234567", "toy, weights seeded:3"]
    assert len(runs) == 4
    for path in folder.glob("*_toy_1*.json"):
        content = json.loads(path.read_text())
        content["command"] = ["evaluate", "--model", "toy", "--weights", "a/mine.pth", "--pamr"]
        path.write_text(json.dumps(content))
    assert methods(find_runs([folder])[0]) == ["toy, weights mine.pth", "toy, weights seeded:3"]
    for path in folder.glob("*_toy_1*.json"):
        words = ["--model", "toy,other", "--weights", "other=b.pth", "toy=a/own.pth", "--pamr"]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"command": words}))
    assert methods(find_runs([folder])[0]) == ["toy, weights own.pth", "toy, weights seeded:3"]


def test_a_class_without_any_pixel_is_left_out_and_one_of_a_run_is_a_dash(results):
    path = results / "voc_toy_pamr_22222222.json"
    content = json.loads(path.read_text())
    content["per_class"]["sofa"] = None
    path.write_text(json.dumps(content))
    runs, _ = find_runs([results / "voc_toy_11111111.json", path])
    assert "tree" not in shown_classes(runs) and "sofa" in shown_classes(runs)
    svg = figure_svg(draw_class_bars(runs, [0, 1]))
    assert svg == figure_svg(draw_class_bars(runs, [0, 1]))  # the same bytes each time


def test_the_ground_truth_of_zero_based_labels_is_shifted(results, data):
    path = results / "voc_toy_11111111.json"
    content = json.loads(path.read_text()) | {"reduce_zero_label": True}
    path.write_text(json.dumps(content))
    runs, _ = find_runs([path])
    _, (truth, _), trouble = read_maps("images/0.png", runs, None)
    stored = np.asarray(Image.open(data / "labels" / "0.png"))
    assert np.array_equal(truth, np.where(stored % 255 == 0, 255, stored - 1)) and not trouble


@pytest.mark.usefixtures("undrawn")
def test_without_counts_or_predictions_or_data_the_rest_is_shown(results, data, tmp_path):
    folder = write_run(data, tmp_path / "bare", kept=False)
    assert Report.main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "--save_predictions DIR" in page and "not kept" in page
    (data / "images" / "0.png").unlink()
    (folder / "voc_toy_11111111.npz").rename(folder / "counts.npz")
    assert Report.main([str(folder), "--overwrite"]) == 0
    page = (folder / "report.html").read_text()
    assert "counts per image (.npz) are not beside" in page
    (folder / "counts.npz").rename(folder / "voc_toy_11111111.npz")
    assert Report.main([str(folder), "--overwrite"]) == 0
    assert "no such image" in (folder / "report.html").read_text()


def test_examples_need_the_counts_of_one_run_only(results, data):
    write_run(data, results, "voc_toy_22222222")
    runs = find_runs([results])[0]
    runs[0].path.with_suffix(".npz").unlink()
    picked = pick_examples(runs, 1)
    name = picked["best"][0]
    example = make_example(name, runs, read_maps(name, runs, None))
    assert example.panels[1] is not None
    assert runs[0].image_scores == {} and name in runs[1].image_scores[""]


def test_a_run_without_any_labelled_pixel_is_shown_as_such(data, tmp_path):
    nothing = {"mIoU": None, "mAcc": None, "aAcc": None, "mIoU_interval": [None, None]}
    nothing["per_class"] = dict.fromkeys(CLASSES)
    folder = write_run(data, tmp_path / "none", **nothing)
    assert Report.main([str(folder), "--examples", "0"]) == 0
    assert "nan" in (folder / "report.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_other_files_are_named_and_left_out(results, capsys):
    (results / "notes.json").write_text("[]")
    (results / "damaged.json").write_text("{")
    assert Report.main([str(results), "--examples", "0"]) == 0
    err = capsys.readouterr().err
    assert "notes.json is no result" in err and "damaged.json is not JSON" in err
    assert Report.main([str(results / "notes.json"), "--output", str(results / "x.html")]) == 1


def test_wrong_arguments_are_refused(tmp_path, results, capsys):
    assert Report.main([str(tmp_path / "no")]) == 2
    assert Report.main([str(results), "--output", str(results / "page.pdf")]) == 2
    assert Report.main([str(results), "--data_root", str(tmp_path / "no")]) == 2
    assert Report.main([str(results), "--examples", "-1"]) == 2
    (tmp_path / "empty").mkdir()
    assert Report.main([str(tmp_path / "empty")]) == 1
    assert "evaluate" in capsys.readouterr().err
    (results / "voc_toy_11111111.npz").write_bytes(b"PK")
    assert Report.main([str(results)]) == 1
    assert "voc_toy_11111111.npz is damaged" in capsys.readouterr().err


def changed(data, folder, **changes):
    """A folder with a run that has other fields; `...` takes one out."""
    write_run(data, folder)
    path = folder / "voc_toy_11111111.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not Ellipsis}))
    return folder


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("benchmark", "../../outside", "benchmark must be a name, no path"),
        ("benchmark", "/tmp/outside", "benchmark must be a name, no path"),
        ("num_images", "<script>alert(1)</script>", "num_images must be int"),
        ("num_images", True, "num_images must be int"),
        ("mIoU", "84", "mIoU must be float"),
        ("aAcc", float("inf"), "aAcc must be float or null, got inf"),
        ("mIoU_interval", [1], "mIoU_interval must be a list of 2"),
        ("per_class", CLASSES, "per_class must be dict"),
        ("per_class", {"cat": [1]}, r"per_class\.cat must be float"),
        ("per_class", {"\ud800": 1}, "per_class: a key must be str"),
        ("title", {}, "title must be str"),
        ("palette", [[1, 2]], r"palette\[0\] must be a list of 3"),
        ("palette", [[1, 2, 300]], "palette must be at most 65535 colours"),
        ("predictions", 3, "predictions must be str"),
        ("timing", {"images_per_second": "fast"}, r"timing\.images_per_second must be float"),
        ("settings", {"segmenter": []}, r"settings\.segmenter must be dict"),
    ],
)
def test_a_field_of_another_type_is_named_and_nothing_is_written(
    data, tmp_path, capsys, field, value, message
):
    folder = changed(data, tmp_path / "results", **{field: value})
    assert Report.main([str(folder), "--output", str(tmp_path / "p" / "q" / "r.html")]) == 1
    assert re.search(f"voc_toy_11111111.json: {message}", capsys.readouterr().err)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("field", ["data_root", "mAcc", "title", "published"])
def test_a_field_that_is_missing_is_named(data, tmp_path, capsys, field):
    folder = changed(data, tmp_path / "results", **{field: ...})
    assert Report.main([str(folder)]) == 1
    assert f"voc_toy_11111111.json: '{field}:' is missing" in (capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", np.array(["../secret.png"] * NUM_IMAGES)),
        ("labels", np.array(["/etc/secret.png"] * NUM_IMAGES)),
        ("images", np.array(["a.png"])),
        ("union", np.zeros((NUM_IMAGES, 3), np.int64)),
        ("confusion", np.zeros((4, 4), complex)),
    ],
)
def test_counts_that_do_not_belong_to_the_result_are_named(results, capsys, name, value):
    path = results / "voc_toy_11111111.npz"
    np.savez(path, **{**np.load(path), name: value})
    assert Report.main([str(results)]) == 1
    assert "voc_toy_11111111.npz is damaged" in capsys.readouterr().err


def test_every_text_of_a_result_is_text_in_the_page(data, tmp_path):
    bad = "\"'><script>alert(1)</script>"
    texts = dict.fromkeys(("title", "model", "finished", "data_root", "readme_name"), bad)
    others = {
        "per_class": {bad: 1.0} | dict.fromkeys(CLASSES[1:], 2.0),
        "settings": {"segmenter": {"projection_weights": bad}},
        "command": [bad],
        "timing": {"device": bad, "images_per_second": 1.0},
    }
    folder = changed(data, tmp_path / "results", **texts, **others)
    (folder / "<script>.json").write_text("[]")  # named in a note
    assert Report.main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "'><" not in page


def test_a_dollar_in_a_name_is_text_in_the_plots(data, tmp_path):
    names = "a$^$b", "$\\frac$", "100 $ or $"
    per_class = {names[0]: 1.0} | dict.fromkeys(CLASSES[1:], 2.0)
    folder = changed(
        data, tmp_path / "results", per_class=per_class, title=names[1], model=names[2]
    )
    assert Report.main([str(folder), "--examples", "0"]) == 0
    page = (folder / "report.html").read_text()
    assert all(name in page for name in names)
