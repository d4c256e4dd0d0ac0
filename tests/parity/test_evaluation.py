"""Whole evaluations against recordings of the published code, through its own command line.

The recordings: seeded weights, a threshold of 0.52, miniatures of the eight benchmarks.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from talk2dino.benchmarks.table import BENCHMARKS, find_benchmark
from talk2dino.cli.evaluate_published import EvaluatePublished

from .conftest import CARRIED, FULL

pytest.importorskip("mmseg")

ROOT = FULL if (FULL / "seg" / "data").is_dir() else CARRIED
RECORDED = sorted(path.stem.removeprefix("eval_") for path in (ROOT / "seg").glob("eval_*.npz"))
EQUAL_PIXELS = 0.999
POINTS = 0.02  # mIoU and aAcc in percent


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def arguments(root, name, output):
    """The published command of a recording, and where its label maps go."""
    key = name.removesuffix("_pamr")
    readme = BENCHMARKS[key].readme_name
    folder = root / "src" / "open_vocabulary_segmentation" / "configs" / readme
    suffix = "_pamr" if name.endswith("_pamr") else ""
    options = ["model.projection_weights=seeded:0"]
    options += ["evaluate.bg_thresh=0.52"] if BENCHMARKS[key].background else []
    predictions = output / "predictions" / name
    argv = ["--eval", "--eval_cfg", folder / f"dinotext_{readme}_toy_mlp_infonce.yml"]
    argv += ["--eval_base", folder / f"eval_{readme}{suffix}.yml", "--opts", *options]
    argv += ["--data_root", ROOT / "seg" / "data", "--output", output, "--device", "cpu"]
    argv += ["--save_predictions", predictions]
    return [str(word) for word in argv], predictions


def result_of(output, name):
    key, pamr = name.removesuffix("_pamr"), name.endswith("_pamr")
    contents = [json.loads(path.read_text()) for path in output.glob(f"{key}_toy_*.json")]
    (content,) = [content for content in contents if content["pamr"] == pamr]
    return content


def compare(name, output, predictions):
    with np.load(ROOT / "seg" / f"eval_{name}.npz") as recording:
        recorded = {key: recording[key] for key in recording.files}
    expected = json.loads((ROOT / "seg" / "expected.json").read_text())[name]
    maps = {key.removeprefix("pred/"): value for key, value in recorded.items() if "/" in key}
    assert len(list(predictions.glob("*.png"))) == len(maps) > 0
    pixels = 0
    for file_name, labels in maps.items():
        stem = file_name.rsplit(".", 1)[0]
        with Image.open(predictions / f"{stem}.png") as image:
            assert image.mode == "L"
            assert (np.asarray(image) == labels).mean() >= EQUAL_PIXELS
        pixels += labels.size
    result = result_of(output, name)
    with np.load(output / result["counts"]) as counts:
        for ours, theirs in (
            ("intersect", "intersect"),
            ("union", "union"),
            ("pred_area", "pred_area"),
            ("label_area", "label_area"),
        ):
            difference = np.abs(counts[ours].sum(axis=0) - recorded[theirs]).sum()
            assert difference <= 2 * (1 - EQUAL_PIXELS) * pixels
        assert np.array_equal(counts["label_area"].sum(axis=0), recorded["label_area"])
    for metric in ("mIoU", "mAcc", "aAcc"):
        assert result[metric] == pytest.approx(100 * expected[metric], abs=POINTS)
    assert result["num_images"] == len(maps)
    assert result["bg_thresh"] == (0.52 if find_benchmark(result["benchmark"]).background else None)
    assert result["with_bg_clean"] == expected["with_bg_clean"]
    assert list(result["per_class"]) == list(expected["IoU"])
    for label, iou in expected["IoU"].items():
        ours = result["per_class"][label]
        if ours is None or np.isnan(iou):  # a class without any pixel, up to the tolerance
            assert (ours or 0) <= POINTS
            assert np.isnan(iou) or iou <= POINTS / 100
        else:
            assert ours == pytest.approx(100 * iou, abs=0.1)


def test_all_eight_benchmarks_are_recorded():
    assert {name.removesuffix("_pamr") for name in RECORDED} == set(BENCHMARKS)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_evaluation(name, root, output):
    argv, predictions = arguments(root, name, output)
    assert EvaluatePublished.main(argv) == 0
    compare(name, output, predictions)


def test_the_published_command_line_in_a_process_of_its_own(root, tmp_path):
    argv, predictions = arguments(root, "voc20", tmp_path)
    script = root / "src" / "open_vocabulary_segmentation" / "main.py"
    command = [sys.executable, "-m", "torch.distributed.run", str(script), *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "| voc20 " in done.stdout
    compare("voc20", tmp_path, predictions)
