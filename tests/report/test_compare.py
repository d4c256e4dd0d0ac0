"""Comparing runs: the paired bootstrap beside a plain resampling, and what is refused."""

import json

import numpy as np
import pytest

from talk2dino.benchmarks.metrics import interval_of, resampled_mious
from talk2dino.cli.report import Compare, Report
from talk2dino.report.runs import DRAWS, compare_runs, find_runs
from tests.report.conftest import write_run

pytestmark = pytest.mark.usefixtures("undrawn")


def with_boundary(path, wrong):
    """Add counts at boundaries: `wrong` of 10 pixels of the cat are not hit in image 5."""
    union = np.tile([10, 10, 10, 0], (7, 1))
    intersect = union.copy()
    intersect[5, 1] -= wrong
    changed_arrays(path, boundary_intersect=intersect, boundary_union=union)
    content = json.loads(path.read_text())
    iou = [100 * hits / 70 for hits in intersect.sum(axis=0)[:3].tolist()]
    per_class = dict(zip(content["per_class"], [*iou, None], strict=True))
    content |= {"boundary_mIoU": sum(iou) / 3, "per_class_boundary_iou": per_class}
    path.write_text(json.dumps(content | {"seam_error": 0.0, "seam_pairs": 0}))


@pytest.fixture
def pair(data, tmp_path):
    """Two runs on the same images; the second makes no mistake."""
    folder = write_run(data, tmp_path / "results")
    write_run(data, folder, "voc_toy_pamr_22222222", wrong=0, pamr=True)
    return [folder / "voc_toy_11111111.json", folder / "voc_toy_pamr_22222222.json"]


def changed_arrays(path, **changes):
    path = path.with_suffix(".npz")
    np.savez(path, **(dict(np.load(path)) | changes))


def plain_miou(intersect, union):
    union = union.sum(axis=0)
    return np.mean(intersect.sum(axis=0)[union > 0] / union[union > 0])


def test_every_draw_is_that_of_a_plain_resampling_of_the_images():
    random = np.random.default_rng(5)
    images, classes, draws = 11, 5, 60
    areas = []
    for _ in range(2):
        union = random.integers(0, 90_000, (images, classes)) * (random.random((images, 5)) < 0.3)
        areas.append(((union * random.random(union.shape)).astype(np.int64), union))
    found = resampled_mious(areas, draws)
    generator = np.random.default_rng(0)
    for draw in range(draws):
        often = generator.multinomial(images, np.full(images, 1 / images))
        chosen = np.repeat(np.arange(images), often)
        for run, (intersect, union) in enumerate(areas):
            total = plain_miou(intersect[chosen], union[chosen])
            assert found[draw, run] == pytest.approx(total, rel=1e-15, abs=0)


def test_draws_in_several_parts_are_the_same(monkeypatch):
    areas = [(np.arange(12).reshape(4, 3), np.full((4, 3), 12))]
    whole = resampled_mious(areas, 50)
    monkeypatch.setattr("talk2dino.benchmarks.metrics._WEIGHTS", 4 * 7)
    assert np.array_equal(resampled_mious(areas, 50), whole)


def test_a_set_without_any_pixel_has_no_interval():
    nothing = np.zeros((3, 2), np.int64)
    assert np.isnan(interval_of(resampled_mious([(nothing, nothing)], 9))).all()


def test_the_difference_and_its_interval_are_those_of_paired_draws(pair):
    first, second = find_runs(pair)[0]
    found = compare_runs(first, [second])[0]
    areas = [(run.counts["intersect"], run.counts["union"]) for run in (first, second)]
    drawn = resampled_mious(areas, DRAWS)
    difference = 100 * drawn[:, 1] - 100 * drawn[:, 0]
    assert found.interval == tuple(np.quantile(difference, [0.025, 0.975]))
    assert found.better == np.mean(difference > 0)
    assert found.difference == pytest.approx(second.result["mIoU"] - first.result["mIoU"])
    assert set(found.per_class) == {"background", "cat & <dog>", "sofa"}  # no tree anywhere
    assert next(iter(found.images)) == "images/5.png"
    own = second.image_scores[""]["images/5.png"] - first.image_scores[""]["images/5.png"]
    assert found.images["images/5.png"] == own
    assert [name for name, _ in found.most("per_class", 9)] == [
        "cat & <dog>",
        "background",
        "sofa",
    ]


def test_the_command_prints_and_writes_the_difference(pair, tmp_path, capsys):
    out = tmp_path / "difference.json"
    assert Compare.main([*map(str, pair), "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert f"B - A: {found['difference']:+.2f} points" in shown
    assert f"{found['interval'][0]:+.2f} to {found['interval'][1]:+.2f}" in shown
    assert "images/5.png" in shown and "images/0.png" not in shown  # where both are right
    assert next(iter(found["images"])) == "images/5.png" and len(found["images"]) == 7
    assert Compare.main([*map(str, pair), "--json", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Compare.main([*map(str, pair[::-1]), "--json", str(out), "--overwrite"]) == 0
    other = json.loads(out.read_text())
    assert other["difference"] == -found["difference"]
    assert other["interval"] == pytest.approx([-value for value in found["interval"][::-1]])
    assert other["better"] == 0


def test_boundaries_are_compared_where_both_runs_have_them(pair, tmp_path, capsys):
    with_boundary(pair[0], wrong=7)
    assert Compare.main([*map(str, pair)]) == 0
    assert "boundary" not in capsys.readouterr().out
    with_boundary(pair[1], wrong=0)
    assert Compare.main([*map(str, pair), "--json", str(tmp_path / "out.json")]) == 0
    assert "B - A: +3.33 points of boundary mIoU" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())["boundary"]
    assert found["difference"] == pytest.approx(10 / 3)
    assert found["per_class"]["cat & <dog>"] == pytest.approx(10)
    assert found["images"]["images/5.png"] == pytest.approx(70 / 3)
    areas = [
        (run.counts["boundary_intersect"], run.counts["boundary_union"])
        for run in find_runs(pair)[0]
    ]
    drawn = 100 * resampled_mious(areas, DRAWS)
    assert found["interval"] == np.quantile(drawn[:, 1] - drawn[:, 0], [0.025, 0.975]).tolist()
    assert Report.main([*map(str, pair), "--examples", "0", "--latex"]) == 0
    assert ", boundary</td><td>+3.33</td>" in (pair[0].parent / "report.html").read_text()
    tables = pair[0].parent / "report_tables"
    assert '"VOC, boundary",toy,toy + PAMR,3.33' in (tables / "differences.csv").read_text()
    heads = (tables / "voc_images.csv").read_text().splitlines()[0]
    assert heads == 'image,toy,toy + PAMR,"toy, boundary","toy + PAMR, boundary"'
    assert ",90.0,100.0\n" in (tables / "voc_classes.csv").read_text()


def test_counts_at_boundaries_have_to_fit_their_result(pair, capsys):
    changed_arrays(pair[1], boundary_intersect=np.zeros((7, 3), int), boundary_union=np.zeros(2))
    assert Compare.main([*map(str, pair)]) == 2
    assert "boundary_intersect must have the shape (7, 4)" in capsys.readouterr().err


def test_a_run_does_not_differ_from_itself(pair, capsys):
    assert Compare.main([str(pair[0]), str(pair[0])]) == 0
    shown = capsys.readouterr().out
    assert "+0.00 points of mIoU, 95 % interval +0.00 to +0.00" in shown
    assert "better in 0.0 %" in shown and "differ most" not in shown


def other_classes(path):
    content = json.loads(path.read_text())
    content["per_class"]["lynx"] = content["per_class"].pop("sofa")
    path.write_text(json.dumps(content))


def other_images(path):
    names = np.load(path.with_suffix(".npz"))["images"]
    changed_arrays(path, images=np.array([*names[:-1], "images/new.png"]))


def other_order(path):
    changed_arrays(path, images=np.load(path.with_suffix(".npz"))["images"][::-1])


def other_truth(path):
    areas = np.load(path.with_suffix(".npz"))["label_area"].copy()
    areas[2] += 1
    changed_arrays(path, label_area=areas)


def no_counts(path):
    path.with_suffix(".npz").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_classes, "4 and 4 classes, only in the first: sofa, only in the second: lynx"),
        (other_images, "7 and 7 images, only in the first: images/6.png, only in the second: ima"),
        (other_order, "the images are in another order"),
        (other_truth, "the ground truth differs in 1 images, as in images/2.png"),
        (no_counts, "voc_toy_pamr_22222222.npz is not there"),
    ],
)
def test_runs_that_do_not_compare_are_refused_with_what_differs(pair, capsys, change, message):
    change(pair[1])
    assert Compare.main([*map(str, pair)]) == 2
    assert message in capsys.readouterr().err


def test_the_report_says_which_runs_do_not_compare_and_shows_the_rest(pair):
    other_order(pair[1])
    assert Report.main([*map(str, pair), "--examples", "0"]) == 0
    page = (pair[0].parent / "report.html").read_text()
    assert "the images are in another order" in page and "<h3>Differences" not in page


def test_wrong_arguments_are_refused(pair, tmp_path, capsys):
    assert Compare.main([str(pair[0]), str(tmp_path)]) == 2
    assert "is a folder, not a file" in capsys.readouterr().err
    assert Compare.main([*map(str, pair), "--most", "-1"]) == 2
    nowhere = np.zeros((7, 4), np.int64)
    for path in pair:
        changed_arrays(path, label_area=nowhere)
    assert Compare.main([*map(str, pair)]) == 2
    assert "no pixel has a label" in capsys.readouterr().err


def test_the_report_shows_the_differences_to_the_first_run(pair):
    assert Report.main([*map(str, pair), "--examples", "0"]) == 0
    page = (pair[0].parent / "report.html").read_text()
    first, second = find_runs(pair)[0]
    found = compare_runs(first, [second])[0]
    assert f"{found.difference:+.2f}" in page and f"{100 * found.better:.1f} %" in page
