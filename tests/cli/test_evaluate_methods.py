"""Several methods in one evaluation: one table, one report, each by its own published rules."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")

from talk2dino import Talk2DINO
from talk2dino.backbones import templates
from talk2dino.benchmarks.datasets import EvaluationSet
from talk2dino.benchmarks.results import read_counts, read_result
from talk2dino.benchmarks.table import BENCHMARKS, STUFF_BACKGROUND
from talk2dino.cli.data import Data
from talk2dino.cli.evaluate import Evaluate
from talk2dino.cli.report import Report
from talk2dino.methods.freeda.method import FreeDAMethod
from talk2dino.methods.ovsegmentor.method import OVSegmentorMethod, OVSegmentorSegmenter
from talk2dino.methods.proxyclip import ProxyClipMethod
from talk2dino.methods.talk2dino.method import Talk2DinoMethod
from talk2dino.methods.talk2dino.segmenter import Talk2DinoSegmenter
from talk2dino.report.pictures import read_maps
from talk2dino.report.runs import find_runs

MINIATURES = Path(__file__).parents[1] / "parity" / "data" / "seg" / "data"
BOTH = "toy,ovsegmentor_toy"


def evaluate(output, *flags, model=BOTH, benchmarks="voc,coco_stuff"):
    words = ["--model", model, "--weights", "seeded:0", "--device", "cpu", "--output", output]
    words += ["--benchmarks", benchmarks, "--data_root", MINIATURES, *flags]
    return Evaluate.main([str(word) for word in words])


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Both methods on two benchmarks, with predictions."""
    output = tmp_path_factory.mktemp("both")
    assert evaluate(output / "results", "--save_predictions", output / "ids") == 0
    return output / "results"


def results_of(folder):
    found = [read_result(path) for path in sorted(folder.glob("*.json"))]
    return {(result["model"], result["benchmark"]): result for result in found}


def test_one_call_gives_one_table_with_both_methods(both):
    (table,) = both.glob("table_*.md")
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.open()]
    assert table.name.startswith("table_toy_ovsegmentor_toy_")
    assert lines[0][:3] == ["model", "benchmark", "mIoU"]
    assert [tuple(line[:2]) for line in lines[2:]] == [
        ("toy", "voc"),
        ("toy", "coco_stuff"),
        ("toy", "mean"),
        ("ovsegmentor_toy", "voc"),
        ("ovsegmentor_toy", "coco_stuff_bg"),
        ("ovsegmentor_toy", "mean"),
    ]
    (csv,) = both.glob("table_*.csv")
    assert csv.read_text().startswith("model,benchmark,mIoU")


def test_one_report_shows_both_methods(both, tmp_path):
    assert Report.main([str(both), "--output", str(tmp_path / "both.html"), "--examples", "1"]) == 0
    page = (tmp_path / "both.html").read_text()
    assert "toy, ovsegmentor_toy" in page.replace("ovsegmentor_toy, toy", "toy, ovsegmentor_toy")
    assert "COCO-Stuff 172" in page
    assert (tmp_path / "both_plots" / "voc_examples.png").is_file()


def test_each_method_follows_its_own_publication(both):
    results = results_of(both)
    ours, other = results[("toy", "voc")], results[("ovsegmentor_toy", "voc")]
    assert (ours["bg_thresh"], other["bg_thresh"]) == (0.55, 0.95)
    assert ours["classes"] == other["classes"]  # so that IoU per class can be compared
    assert "prompted" not in ours["settings"]
    assert set(other["settings"]["prompted"]) - set(other["classes"]) == {
        *("table", "plant", "monitor")
    }
    assert (other["pamr"], other["with_bg_clean"]) == (False, False)
    assert other["settings"]["segmenter"]["weights"] == "seeded:0"
    stuff = results[("ovsegmentor_toy", "coco_stuff_bg")]
    assert (stuff["bg_thresh"], len(stuff["classes"]), stuff["has_background"]) == (0.95, 172, True)


def test_each_method_embeds_its_own_names_and_scores_with_its_own_threshold(tmp_path, monkeypatch):
    embedded, scored = {}, {}

    def spy(owner, name, seen, position):
        """Note one argument of every call, by the segmenter that is the first argument."""
        real = getattr(owner, name)

        def called(segmenter, *args):
            seen[type(segmenter)] = args[position]
            return real(segmenter, *args)

        monkeypatch.setattr(owner, name, called)

    spy(Talk2DinoSegmenter, "embed_classes", embedded, 0)
    spy(OVSegmentorSegmenter, "embed_classes", embedded, 0)
    spy(Talk2DinoSegmenter, "patch_scores", scored, 1)
    spy(OVSegmentorSegmenter, "score_features", scored, 2)
    one_image = ["--num_jobs", 3, "--job_id", 0]
    assert evaluate(tmp_path, *one_image, benchmarks="voc") == 0
    ours, other = embedded[Talk2DinoSegmenter], embedded[OVSegmentorSegmenter]
    assert "tvmonitor" in ours and "monitor" not in ours
    assert "monitor" in other and "tvmonitor" not in other
    thresholds = {kind: query.background for kind, query in scored.items()}
    assert thresholds == {Talk2DinoSegmenter: 0.55, OVSegmentorSegmenter: 0.95}


def test_the_report_reads_the_labels_of_172_classes_as_the_evaluation_does(both):
    runs, _ = find_runs([both])
    (run,) = [run for run in runs if run.benchmark == "coco_stuff_bg"]
    dataset = EvaluationSet(STUFF_BACKGROUND, MINIATURES)
    for index, sample in enumerate(dataset.samples):
        truth = read_maps(sample.image, [run], MINIATURES)[1][0]
        assert np.array_equal(truth, dataset.read_label(index))


def test_predictions_of_two_models_do_not_meet(both):
    for (model, key), result in results_of(both).items():
        folder = both.parent / "ids" / model / key
        assert result["predictions"] == str(folder)
        assert len(list(folder.glob("*.png"))) == 3


def test_one_method_alone_counts_as_both_together(both, tmp_path):
    assert evaluate(tmp_path, model="ovsegmentor_toy", benchmarks="voc") == 0
    (alone,) = tmp_path.glob("voc_*.json")
    together = both / alone.name
    for name, value in read_counts(together).items():
        assert np.array_equal(value, read_counts(alone)[name]), name
    (table,) = tmp_path.glob("table_*.md")
    assert table.read_text().startswith("| benchmark ")


def test_the_same_call_again_loads_nothing(both, monkeypatch, capsys):
    monkeypatch.setattr(OVSegmentorMethod, "load", pytest.fail)
    monkeypatch.setattr(Talk2DinoMethod, "load", pytest.fail)
    assert evaluate(both, "--save_predictions", both.parent / "ids") == 0
    assert "| ovsegmentor_toy | voc " in capsys.readouterr().out


def test_all_of_a_method_without_published_numbers_asks_for_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Talk2DinoMethod, "published_on", [])
    assert evaluate(tmp_path, model="toy", benchmarks="all") == 2
    assert "no numbers of toy are published. Name the benchmarks" in capsys.readouterr().err


def test_all_means_what_each_method_was_published_on(tmp_path, capsys):
    assert evaluate(tmp_path, "--num_jobs", 9, "--job_id", 8, benchmarks="all") == 0
    said = capsys.readouterr().out.splitlines()
    counted = [line.split(":")[0] for line in said if "images are counted" in line]
    assert counted.count("ovsegmentor_toy, coco_stuff_bg") == 1
    assert len([line for line in counted if line.startswith("toy,")]) == 8
    assert len([line for line in counted if line.startswith("ovsegmentor_toy,")]) == 5


def test_unlabelled_pixels_are_the_background_of_172_classes():
    plain = EvaluationSet(BENCHMARKS["coco_stuff"], MINIATURES)
    dataset = EvaluationSet(STUFF_BACKGROUND, MINIATURES)
    assert dataset.classes == ["background", *plain.classes]
    assert len(dataset.palette) == 172
    for index in range(len(dataset.samples)):
        file, labels = plain.read_label(index), dataset.read_label(index)
        assert (labels[file == 255] == 0).all()
        assert (labels[file != 255] == file[file != 255] + 1).all()
    with pytest.raises(ValueError, match="1 pixels with label 171; coco_stuff_bg has the labels 0"):
        dataset.read_label(0, np.array([[0, 255, 171]], np.uint8))


def test_the_data_of_172_classes_is_that_of_171(capsys):
    words = ["check", "--data_root", str(MINIATURES), "--benchmarks", "coco_stuff_bg,coco_stuff"]
    Data.main(words)
    assert capsys.readouterr().out.count("coco_stuff ") == 1


@pytest.mark.parametrize(
    ("flags", "model", "message"),
    [
        (["--pamr"], "ovsegmentor_toy", "--pamr means nothing for ovsegmentor_toy. Leave it out"),
        (["--vision_weights", "x"], "ovsegmentor_toy", "--vision_weights means nothing"),
        (["--model", "toy,ovsegmentor"], BOTH, "unknown model 'ovsegmentor'"),
        (["--weights", "absent"], "ovsegmentor_toy", "absent: no OVSegmentor weights there"),
        (["--weights", "a.pth"], BOTH, "there are several models. Say whose they are"),
        (["--bg_thresh", "7"], "ovsegmentor_toy", "compared with products of two softmaxes"),
        (["--template", "all"], "ovsegmentor_toy", "unknown template 'all'"),
        (["--benchmarks", "stuff_gb"], BOTH, "unknown benchmark 'stuff_gb'"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_loaded(
    tmp_path, capsys, monkeypatch, flags, model, message
):
    monkeypatch.chdir(tmp_path)
    assert evaluate(tmp_path / "out", *flags, model=model) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_flag_that_one_of_two_models_has_is_used_there(tmp_path, capsys):
    flags = ["--pamr", "--num_jobs", "9", "--job_id", "8"]
    assert evaluate(tmp_path, *flags, benchmarks="voc20") == 0
    said = capsys.readouterr().err
    assert "warning: --pamr means nothing for ovsegmentor_toy" in said
    assert "warning: nothing is published of ovsegmentor_toy on voc20\n" in said
    assert "published of toy" not in said


def test_an_image_that_cannot_be_read_is_named_for_both(tmp_path, capsys):
    folder = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    (folder / "JPEGImages" / "a.jpg").write_bytes(b"")
    Image.new("L", (4, 4)).save(folder / "SegmentationClass" / "a.png")
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    assert evaluate(tmp_path / "out", "--data_root", tmp_path / "data", benchmarks="voc") == 2
    assert "a.jpg is empty" in capsys.readouterr().err


def test_a_saved_folder_scores_as_the_model_it_was_saved_from(both, tmp_path, capsys):
    folder = Talk2DINO.from_pretrained("toy", device="cpu").save_pretrained(tmp_path / "mine")
    words = ["--model", str(folder), "--benchmarks", "coco_stuff", "--data_root", str(MINIATURES)]
    assert Evaluate.main([*words, "--device", "cpu", "--output", str(tmp_path / "results")]) == 0
    (result,) = results_of(tmp_path / "results").items()
    assert result[0] == ("mine", "coco_stuff")
    assert result[1]["mIoU"] == results_of(both)[("toy", "coco_stuff")]["mIoU"]


@pytest.fixture
def compare(tmp_path_factory):
    """Evaluate models on one small picture of VOC20; returns the exit code."""
    root = tmp_path_factory.mktemp("compare")
    folder = root / "data" / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "JPEGImages" / "a.jpg")
    Image.fromarray(pixels[..., 0] % 21).save(folder / "SegmentationClass" / "a.png")
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")

    def run(output, models, *flags):
        with pytest.MonkeyPatch.context() as patch:  # one prompt per word: 80 take their time
            patch.setattr(templates, "get_templates", lambda _: ("a photo of a {}.",))
            words = ["--data_root", root / "data", *flags]
            return evaluate(output, *words, model=",".join(models), benchmarks="voc20")

    return run


def test_a_killed_comparison_under_the_unified_protocol_goes_on(
    compare, tmp_path, monkeypatch, capsys
):
    models = ("toy", "proxyclip_toy", "clip_dinoiser_toy", "freeda_toy")
    flags = ("--protocol", "unified")
    with monkeypatch.context() as patch:
        patch.setattr(FreeDAMethod, "load", Mock(side_effect=KeyboardInterrupt))
        assert compare(tmp_path, models, *flags) == 130
    assert len(results_of(tmp_path)) == 3 and not list(tmp_path.glob("table_*"))
    monkeypatch.setattr(ProxyClipMethod, "load", pytest.fail)
    assert compare(tmp_path, models, *flags) == 0

    said = capsys.readouterr().out
    assert "- toy, voc20: nothing\n" in said
    assert "- proxyclip_toy, voc20: short side 448 in place of 336; window 448 in" in said
    assert "clip_dinoiser_toy, voc20: diningtable in place of dining table; potted" in said
    assert "- freeda_toy, voc20: nothing\n" in said
    (table,) = tmp_path.glob("table_*.md")
    assert "mIoU, unified" in table.read_text() and "- toy, voc20: nothing" in table.read_text()
    results = results_of(tmp_path)
    assert [model for model, _ in results] == sorted(models)
    for result in results.values():
        settings = result["settings"]
        assert settings["segmenter"]["protocol"] == "unified"
        assert (settings["protocol"]["short_side"], settings["protocol"]["window"]) == (448, 448)
        assert "prompted" not in settings and result["published"] is None
    superpixels = results[("freeda_toy", "voc20")]["settings"]["segmenter"]["superpixels"]
    assert superpixels == {"scale": 100, "sigma": 0.7, "min_size": 20}  # its own, kept
    assert results[("proxyclip_toy", "voc20")]["uniform_windows"] is not None
    assert results[("toy", "voc20")]["uniform_windows"] is None
    assert Report.main([str(tmp_path), "--examples", "0"]) == 0
    assert "freeda_toy, unified protocol" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--benchmarks", "voc20,voc"], "voc has a background, but the backgrounds of methods are"),
        (["--benchmarks", "coco_stuff_bg"], "coco_stuff_bg has a background, but"),
        (
            ["--benchmarks", "voc20", "--bg_thresh", "0.5"],
            "a background (threshold 0.5), but the backgrounds",
        ),
        (["--protocol", "unifed"], "unknown protocol 'unifed'. Known: native, unified"),
    ],
)
def test_what_the_unified_protocol_is_not_for_is_refused(tmp_path, capsys, flags, message):
    assert evaluate(tmp_path / "out", "--protocol", "unified", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_benchmarks_of_the_unified_protocol_are_the_five_without_background(tmp_path, capsys):
    flags = ["--protocol", "unified", "--num_jobs", 9, "--job_id", 8]
    assert evaluate(tmp_path, *flags, benchmarks="all") == 0
    said = capsys.readouterr().out
    keys = ("voc20", "context59", "coco_stuff", "cityscapes", "ade20k")
    counted = [line.split(":")[0] for line in said.splitlines() if "images are counted" in line]
    assert sorted(counted) == sorted(f"{model}, {key}" for model in BOTH.split(",") for key in keys)
