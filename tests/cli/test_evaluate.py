"""The evaluation commands end to end: killed, shared, sliced, and what they refuse."""

import json
import os
import random
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg")

from talk2dino import label_map, load_segmenter
from talk2dino.__main__ import main as project_main
from talk2dino.benchmarks.datasets import load_openmmlab
from talk2dino.benchmarks.results import read_counts, read_result
from talk2dino.benchmarks.tables import results_table
from talk2dino.cli.evaluate import Evaluate
from talk2dino.cli.evaluate_published import EvaluatePublished
from talk2dino.cli.report import Compare, Report
from talk2dino.files import file_sha256
from talk2dino.pictures.images import read_rgb
from tests.ranks import run_ranks

MINIATURES = Path(__file__).parents[1] / "parity" / "data" / "seg" / "data"
TOY = ["--model", "toy", "--weights", "seeded:0", "--device", "cpu"]
SMALL = {"short_side": 112, "window": 112, "stride": 112}
PASCAL = "VOCdevkit/VOC2012"


def files_below(folder, pattern="*.json"):
    return sorted(Path(folder).glob(pattern))


def evaluate(output, *flags, data=MINIATURES, benchmarks="voc20", sizes=SMALL):
    words = [*TOY, "--benchmarks", benchmarks, "--data_root", data, "--output", output, *flags]
    words += [word for name, value in sizes.items() for word in (f"--{name}", value)]
    return Evaluate.main([str(word) for word in words])


def only_counts(output):
    (path,) = files_below(output)
    return path.name, read_counts(path)


def assert_same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        assert np.array_equal(value, other[1][name]), name


@pytest.fixture(scope="module")
def voc20(tmp_path_factory):
    """A finished evaluation, to compare with."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert evaluate(output) == 0
    return output


@pytest.fixture(scope="module")
def voc20_in_full(tmp_path_factory):
    """One at the sizes of the benchmark, as the published command has them."""
    output = tmp_path_factory.mktemp("in_full")
    assert evaluate(output, sizes={}) == 0
    return output


@pytest.fixture
def data(tmp_path):
    return shutil.copytree(MINIATURES, tmp_path / "data")


def published(root, output, *flags):
    """The published command's words, for the toy on VOC20."""
    configs = root / "src" / "open_vocabulary_segmentation" / "configs" / "voc"
    words = ["--eval"]
    words += ["--eval_cfg", configs / "dinotext_voc_toy_mlp_infonce.yml"]
    words += ["--eval_base", configs / "eval_voc.yml", "--data_root", MINIATURES]
    words += ["--output", output, "--device", "cpu"]
    words += ["--opts", "model.projection_weights=seeded:0", *flags]
    return [str(word) for word in words]


def test_sizes_stitching_and_refinements_of_flags_are_those_of_python(tmp_path):
    sizes = {"short_side": 112, "window": 84, "stride": 42, "stitch": "hann"}
    refine = {"refine": "smoothing,propagation", "propagation_graph": "image"}
    flags = ["--save_predictions", tmp_path / "labels"]
    assert evaluate(tmp_path / "results", *flags, sizes=sizes | refine) == 0
    (path,) = files_below(tmp_path / "results")
    settings = read_result(path)["settings"]
    assert settings["segmenter"]["sizes"] == sizes
    assert settings["segmenter"]["propagation_graph"] == "image"
    segmenter = load_segmenter("toy", "seeded:0", benchmark="voc20", **sizes, **refine)
    query = segmenter.query(read_result(path)["classes"])
    for saved in (tmp_path / "labels").rglob("*.png"):
        image = MINIATURES / PASCAL / "JPEGImages" / f"{saved.stem}.jpg"
        expected = label_map(segmenter, read_rgb(image), query)
        assert np.array_equal(np.asarray(Image.open(saved)), expected)


def test_one_json_and_its_counts_per_run(voc20):
    (path,) = files_below(voc20)
    result, counts = read_result(path), read_counts(path)
    assert path.name.startswith("voc20_toy_")
    assert result["benchmark"] == "voc20"
    assert (result["model"], result["pamr"], result["bg_thresh"]) == ("toy", False, None)
    assert result["num_images"] == len(counts["images"]) == 3
    iou = counts["intersect"].sum(0) / np.maximum(counts["union"].sum(0), 1)
    present = counts["union"].sum(0) > 0
    assert result["mIoU"] == pytest.approx(100 * iou[present].mean(), abs=1e-3)
    absent = [name for name, value in result["per_class"].items() if value is None]
    assert absent == [
        name for name, there in zip(result["classes"], present, strict=True) if not there
    ]
    low, high = result["mIoU_interval"]
    assert 0 <= low <= high <= 100
    assert (Path(result["data_root"]) / counts["images"][0]).is_file()
    assert result["settings"]["segmenter"]["projection_weights"] == "seeded:0"
    assert set(result["versions"]) >= {"torch", "numpy", "opencv", "python"}
    assert result["timing"]["images"] == 3
    assert result["timing"]["peak_memory_mib"] > 100


def test_the_table_has_columns_for_a_paper_where_it_has_numbers(voc20_in_full):
    (table,) = files_below(voc20_in_full, "table_toy_*.md")
    lines = table.read_text().splitlines()
    heads = ["benchmark", "mIoU", "95 % from", "to", "mAcc"]
    assert [cell.strip() for cell in lines[0].split("|")][1:6] == heads
    assert "voc20" in lines[2]
    (csv,) = files_below(voc20_in_full, "table_toy_*.csv")
    assert csv.read_text().startswith("benchmark,mIoU,95 % from,to,mAcc")
    result = read_result(files_below(voc20_in_full)[0])
    beside = results_table([{**result, "published": 80.0}, {**result, "benchmark": "voc"}])
    assert beside.columns[4:6] == ["paper", "difference"]


def test_every_image_is_read_once_for_the_digest_of_a_run(tmp_path, monkeypatch):
    read = []

    def digest(path):
        read.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr("talk2dino.benchmarks.datasets.file_sha256", digest)
    for _ in range(2):  # a run, and one that finds its result
        assert evaluate(tmp_path) == 0
        assert len(read) == len(set(read)) == 3
        read.clear()


def test_the_same_command_again_changes_nothing(voc20, capsys, monkeypatch):
    read = []
    monkeypatch.setattr("talk2dino.benchmarks.job.label_pictures", pytest.fail)
    monkeypatch.setattr(
        "talk2dino.benchmarks.job.read_result", lambda path: read.append(path) or read_result(path)
    )
    assert [path.name for path in voc20.glob("counts/*/*")] == ["settings.json"]
    before = {path: path.stat().st_mtime_ns for path in voc20.glob("voc20*")}
    assert evaluate(voc20) == 0
    assert {path: path.stat().st_mtime_ns for path in voc20.glob("voc20*")} == before
    assert "| voc20 " in capsys.readouterr().out
    assert len(read) == 1, "what is there is read once"


def test_other_settings_are_another_run(voc20, tmp_path):
    output = shutil.copytree(voc20, tmp_path / "results")
    assert evaluate(output, "--template", "simple") == 0
    names = [path.name for path in files_below(output)]
    assert len(names) == 2
    assert len(files_below(output, "table_*.md")) == 2


def test_a_lower_precision_is_another_run_and_full_precision_is_not(voc20, tmp_path):
    output = shutil.copytree(voc20, tmp_path / "results")
    assert evaluate(output, "--precision", "fp32", "--score_memory", 1) == 0
    assert len(files_below(output)) == 1
    assert evaluate(output, "--precision", "bf16") == 0
    settings = [read_result(path)["settings"]["segmenter"] for path in files_below(output)]
    assert sorted(content.get("precision", "") for content in settings) == ["", "bf16"]


def test_a_compiled_backbone_is_another_run_with_the_same_counts(voc20, tmp_path, monkeypatch):
    compiled = []
    compiler = lambda program, inputs: compiled.append(program) or program.forward  # noqa: E731
    monkeypatch.setattr("talk2dino.devices.COMPILER", compiler)
    monkeypatch.setattr("talk2dino.devices.shutil.which", lambda name: name)
    output = shutil.copytree(voc20, tmp_path / "results")
    assert evaluate(output, "--compile") == 0 and compiled
    results = [read_result(path) for path in files_below(output)]
    settings = [result["settings"]["segmenter"] for result in results]
    assert sorted(content.get("compile", False) for content in settings) == [False, True]
    one, other = map(read_counts, files_below(output))
    assert np.array_equal(one["intersect"], other["intersect"])


def run_and_die(words, output, seconds):
    """Run the published command, and SIGKILL it some seconds after its next image is counted."""
    torch.set_num_threads(1)

    def counted():
        return len(list(output.glob("counts/*/*.npz")))

    def die():
        pause, before = threading.Event(), counted()
        while counted() == before:
            pause.wait(0.001)
        pause.wait(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    if seconds is not None:
        threading.Thread(target=die, daemon=True).start()
    sys.exit(EvaluatePublished.main(words))


def test_a_run_killed_at_random_goes_on(root, voc20_in_full, tmp_path, fork_server):
    words, chance, codes = published(root, tmp_path), random.Random(3), []
    for seconds in (0, chance.uniform(0, 0.2), chance.uniform(0, 0.2), None):
        process = fork_server.Process(target=run_and_die, args=(words, tmp_path, seconds))
        process.start()
        process.join()
        codes.append(process.exitcode)
    assert codes[0] == -signal.SIGKILL and codes[-1] == 0
    assert_same(only_counts(tmp_path), only_counts(voc20_in_full))


def test_two_processes_count_as_one(root, voc20_in_full, tmp_path, fork_server):
    output, words = tmp_path / "results", published(root, tmp_path / "results")
    codes, said = run_ranks(fork_server, EvaluatePublished.main, words, 2, tmp_path)
    assert codes == [0, 0], said
    assert ["| voc20 " in text for text in said] == [True, False]  # only one process prints
    assert_same(only_counts(output), only_counts(voc20_in_full))  # two images and one
    (path,) = files_below(output)
    assert read_result(path)["timing"]["processes"] == 2


def test_three_jobs_make_one_result(voc20, tmp_path, capsys):
    for job in (1, 0):
        assert evaluate(tmp_path, "--num_jobs", 3, "--job_id", job) == 0
        assert not files_below(tmp_path)
    assert "2 of 3 images are counted" in capsys.readouterr().out
    assert evaluate(tmp_path, "--num_jobs", 3, "--job_id", 2) == 0
    assert_same(only_counts(tmp_path), only_counts(voc20))
    maps = tmp_path / "maps"  # wanted afterwards
    for job in (2, 0, 1):
        flags = ["--num_jobs", 3, "--job_id", job, "--save_predictions", maps]
        assert evaluate(tmp_path, *flags) == 0
    assert read_result(files_below(tmp_path)[0])["predictions"] == str(maps / "voc20")
    assert_same(only_counts(tmp_path), only_counts(voc20))


def test_predictions_and_qualitative_pictures(voc20, tmp_path):
    flags = ["--save_predictions", tmp_path / "ids", "--pred_qual_path", tmp_path / "colours"]
    assert evaluate(tmp_path / "out", *flags, "--gt_qual_path", tmp_path / "truth") == 0
    (path,) = files_below(tmp_path / "out")
    result, counts = read_result(path), read_counts(path)
    assert result["predictions"] == str(tmp_path / "ids" / "voc20")
    for index, image in enumerate(counts["images"]):
        name = f"{Path(str(image)).stem}.png"
        ids = np.asarray(Image.open(tmp_path / "ids" / "voc20" / name))
        colours = np.asarray(Image.open(tmp_path / "colours" / "voc20" / name).convert("RGB"))
        assert np.array_equal(colours, np.array(result["palette"], np.uint8)[ids])
        with Image.open(Path(result["data_root"]) / str(counts["labels"][index])) as label:
            raw = np.asarray(label)
        assert np.array_equal(
            np.bincount(ids[raw % 255 != 0], minlength=20), counts["pred_area"][index]
        )
        truth = np.asarray(Image.open(tmp_path / "truth" / "voc20" / name))
        assert np.array_equal(truth, np.where(raw % 255 == 0, 255, raw - 1))


def test_label_maps_of_another_run_are_not_replaced(tmp_path, capsys):
    folder = tmp_path / "ids" / "voc20"
    folder.mkdir(parents=True)
    Image.new("L", (3, 3)).save(folder / "2007_000000.png")
    assert evaluate(tmp_path / "out", "--save_predictions", tmp_path / "ids") == 2
    assert "holds label maps of something else" in capsys.readouterr().err
    assert Image.open(folder / "2007_000000.png").size == (3, 3)


def remove_all(data):
    shutil.rmtree(data)


def remove_split(data):
    (data / PASCAL / "ImageSets/Segmentation/val.txt").unlink()


def empty_split(data):
    (data / PASCAL / "ImageSets/Segmentation/val.txt").write_text("\n")


def repeated_split(data):
    split = data / PASCAL / "ImageSets/Segmentation/val.txt"
    split.write_bytes(
        b"\xef\xbb\xbf2007_000001\r\n2007_000000\r\n2007_000001\r\n2007_000000\r\n2007_000001"
    )


def remove_images(data):
    for path in (data / PASCAL / "JPEGImages").glob("*.jpg"):
        path.unlink()


def remove_a_label(data):
    (data / PASCAL / "SegmentationClass/2007_000001.png").unlink()


def small_label(data):
    Image.new("L", (8, 9)).save(data / PASCAL / "SegmentationClass/2007_000002.png")


def coloured_label(data):
    path = data / PASCAL / "SegmentationClass/2007_000000.png"
    Image.open(path).convert("RGB").save(path)


def wrong_label(data):
    path = data / PASCAL / "SegmentationClass/2007_000000.png"
    labels = np.asarray(Image.open(path)).copy()
    labels[:2, :3] = 21
    Image.fromarray(labels).save(path)


def jpeg_label(data):
    path = data / PASCAL / "SegmentationClass/2007_000002.png"
    Image.open(path).convert("L").save(path, format="JPEG")


def cut_label(data):
    path = data / PASCAL / "SegmentationClass/2007_000000.png"
    path.write_bytes(path.read_bytes()[:-60])


def damaged_image(data):
    (data / PASCAL / "JPEGImages/2007_000001.jpg").write_bytes(b"not an image")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_all, "there is no data folder"),
        (remove_split, "there is no "),
        (empty_split, "val.txt is empty: it lists no names"),
        (repeated_split, "val.txt lists more than once: 2007_000001 (3 times), 2007_000000 (2"),
        (remove_images, "3 of 3 image files are missing"),
        (remove_a_label, "1 of 3 label files are missing"),
        (small_label, "is 8x9 pixels, but its image is 333x500"),
        (coloured_label, "holds RGB colours, not class numbers"),
        (wrong_label, "6 pixels with label 21; voc20 has the labels 1 to 20"),
        (jpeg_label, "2007_000002.png is no lossless PNG but JPEG"),
        (cut_label, "2007_000000.png is truncated or damaged"),
        (damaged_image, "2007_000001.jpg is not an image"),
    ],
)
def test_unusable_data_is_named_before_weights_are_loaded(data, tmp_path, capsys, spoil, message):
    spoil(data)
    assert evaluate(tmp_path / "out", data=data) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--benchmarks", "voc,adee"], "unknown benchmark 'adee'"),
        (["--model", "vit"], "unknown model 'vit'"),
        (["--model", "absent.yaml"], "absent.yaml: no such file"),
        (["--weights", "absent.pth"], "there are no projection weights at absent.pth"),
        (["--template", "all"], "unknown template 'all'"),
        (["--bg_thresh", "55", "--benchmarks", "voc"], "bg_thresh must lie in [0, 1], got 55.0"),
        (["--num_jobs", "2", "--job_id", "2"], "found job 2 of 2"),
        (["--batch_size", "0"], "batch_size, score_memory and readers must be at least 1"),
        (["--score_memory", "0"], "score_memory and readers must be at least 1"),
        (["--precision", "half"], "unknown precision 'half'"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--save_predictions", "x", "--pred_qual_path", "x"], "need different folders"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert evaluate(tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_threshold_without_background_is_unused(voc20, capsys):
    assert evaluate(voc20, "--bg_thresh", "0.5") == 0
    assert "--bg_thresh is unused for voc20" in capsys.readouterr().err
    assert len(files_below(voc20)) == 1  # the same run as without it


def test_counts_of_other_settings_are_refused(voc20, tmp_path, capsys):
    output = shutil.copytree(voc20, tmp_path / "results")
    (path,) = output.glob("counts/*/settings.json")
    path.write_text("{}")
    (result,) = files_below(output)
    result.unlink()  # or nothing had to be counted
    assert evaluate(output) == 1
    assert "made with other settings" in capsys.readouterr().err


def test_a_damaged_result_is_named(voc20, tmp_path, capsys):
    output = shutil.copytree(voc20, tmp_path / "results")
    files_below(output)[0].write_text("{")
    assert evaluate(output) == 1
    assert "Delete it and evaluate again" in capsys.readouterr().err


def test_the_published_command_needs_eval(root, tmp_path, capsys):
    words = [word for word in published(root, tmp_path) if word != "--eval"]
    assert EvaluatePublished.main(words) == 2
    assert "pass --eval" in capsys.readouterr().err


def test_mmsegmentation_is_needed_only_where_it_is_the_reader(tmp_path, capsys, monkeypatch):
    load_openmmlab.cache_clear()
    for name in ["mmcv", "mmseg", *sys.modules]:
        if name.partition(".")[0] in ("mmcv", "mmseg"):
            monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert evaluate(tmp_path) == 0
    assert evaluate(tmp_path, "--reader", "mmseg") == 2
    message = capsys.readouterr().err
    assert "requirements-benchmark.txt" in message and "import of mmcv halted" in message


def test_it_is_a_command_of_the_project(capsys):
    assert project_main(["evaluate", "--help"]) == 0
    assert "--benchmarks" in capsys.readouterr().out


def test_the_json_is_plain(voc20):
    (path,) = files_below(voc20)
    json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN in it


def test_a_missing_data_folder_is_named_before_a_model_is_looked_for(tmp_path, capsys):
    command = ["--model", "nobody/nothing", "--data_root", str(tmp_path / "data")]
    assert Evaluate.main(command) == 2
    error = capsys.readouterr().err
    assert "there is no data folder" in error and "data check" in error


def test_counts_of_another_batch_size_or_of_other_pictures_are_not_mixed_in(tmp_path, capsys):
    data = shutil.copytree(MINIATURES, tmp_path / "data")
    assert evaluate(tmp_path / "results", data=data) == 0
    assert evaluate(tmp_path / "results", "--batch_size", 3, data=data) == 1
    picture = sorted((data / PASCAL / "JPEGImages").glob("*.jpg"))[0]
    content = bytearray(picture.read_bytes())
    content[-3] ^= 1
    picture.write_bytes(content)
    (result,) = files_below(tmp_path / "results")
    before = read_result(result)
    assert evaluate(tmp_path / "results", data=data) == 1
    assert "other settings, --batch_size or pictures" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "results" / "counts" / result.stem)  # as the message says
    assert evaluate(tmp_path / "results", data=data) == 0
    after = read_result(result)
    assert after["counted_with"]["pictures"] != before["counted_with"]["pictures"]
    assert after["timing"]["images"] == 3, "and not the result of the other pictures"


def test_borders_are_scored_beside_an_unchanged_result(voc20, tmp_path, capsys):
    output = shutil.copytree(voc20, tmp_path / "results")
    assert evaluate(output, "--boundary") == 0
    shown = capsys.readouterr().out
    assert "| boundary mIoU | seam error |" in shown
    paths = sorted(files_below(output), key=lambda path: path.stat().st_mtime)
    before, after = map(read_result, paths)
    assert after["mIoU"] == before["mIoU"] and after["per_class"] == before["per_class"]
    assert before["boundary_mIoU"] is None and 0 <= after["boundary_mIoU"] < 100
    assert after["seam_pairs"] > 0 and 0 <= after["seam_error"] <= 100
    assert f"{after['boundary_mIoU']:.2f}" in shown
    assert Report.main([*map(str, paths), "--examples", "0"]) == 0
    assert "<th>seam error</th>" in (output / "report.html").read_text()


def test_a_vocabulary_of_the_classes_own_names_changes_no_count(voc20, tmp_path):
    (path,) = files_below(voc20)
    names = read_result(path)["classes"]
    words = tmp_path / "words.txt"
    words.write_text("# VOC\n" + "\n".join(names))
    output = tmp_path / "results"
    assert evaluate(output, "--vocabulary", words) == 0
    (other,) = files_below(output)
    before, after = read_result(path), read_result(other)
    assert other.name != path.name and after["published"] is None
    assert after["per_class"] == before["per_class"]
    assert np.array_equal(read_counts(path)["confusion"], read_counts(other)["confusion"])


def test_aliases_are_a_run_of_their_own_that_compares_with_the_others(voc20, tmp_path, capsys):
    (path,) = files_below(voc20)
    names = read_result(path)["classes"]
    words = tmp_path / "words.txt"
    words.write_text("\n".join([f"{names[0]}; plane; jet", *names[1:]]))
    output = tmp_path / "results"
    assert evaluate(output, "--vocabulary", words) == 0
    assert evaluate(output, "--vocabulary", words, "--pooling", "lse") == 0
    first, second = files_below(output)
    poolings = {read_result(found)["settings"]["pooling"] for found in (first, second)}
    assert poolings == {"max", "lse"}
    assert read_result(first)["settings"]["prompted"][0] == f"{names[0]}; plane; jet"
    assert Compare.main([str(path), str(first)]) == 0
    words.write_text("\n".join(["renamed", *names[1:]]))
    assert evaluate(tmp_path / "other", "--vocabulary", words) == 0
    assert read_result(files_below(tmp_path / "other")[0])["classes"] == ["renamed", *names[1:]]


def test_words_of_the_background_compete_beside_its_threshold(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("\n".join(["background; sky; wall", *(f"class {n}" for n in range(20))]))
    output = tmp_path / "results"
    assert evaluate(output, "--vocabulary", words, benchmarks="voc") == 0
    result = read_result(files_below(output)[0])
    assert result["classes"][:2] == ["background", "class 0"] and len(result["classes"]) == 21
    assert result["settings"]["prompted"][0] == "sky; wall"


def test_a_vocabulary_that_does_not_fit_is_refused_before_anything_is_loaded(tmp_path, capsys):
    words = tmp_path / "words.txt"
    words.write_text("cat\ndog\n")
    assert evaluate(tmp_path / "out", "--vocabulary", words) == 2
    assert "words.txt lists 2 classes, the last one 'dog'; voc20 has 20" in capsys.readouterr().err
    assert evaluate(tmp_path / "out", "--pooling", "lse") == 2
    assert "--vocabulary FILE.txt" in capsys.readouterr().err
    assert evaluate(tmp_path / "out", "--vocabulary", tmp_path / "no.txt") == 2
