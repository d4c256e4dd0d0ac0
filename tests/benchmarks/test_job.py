"""The loop with a segmenter whose result is known: counts, sharing, slices, resuming, memory."""

import dataclasses
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from talk2dino.benchmarks import job as job_module
from talk2dino.benchmarks import metrics
from talk2dino.benchmarks.data.labels import ignored_label
from talk2dino.benchmarks.datasets import EvaluationSet, check_files, fingerprint
from talk2dino.benchmarks.job import Job, Run, evaluate_group, group_runs
from talk2dino.benchmarks.metrics import (
    PAIR,
    ImageCounts,
    begin_count,
    resampled_mious,
    stacked_areas,
)
from talk2dino.benchmarks.results import (
    PictureFolders,
    keep_counts,
    kept_counts,
    read_counts,
    write_result,
)
from talk2dino.benchmarks.scoring import Batching, Picture, Task, label_pictures
from talk2dino.benchmarks.table import BENCHMARKS
from talk2dino.methods.talk2dino.config import read_segmenter_config
from talk2dino.methods.talk2dino.projection import load_projection
from talk2dino.methods.talk2dino.segmenter import Talk2DinoSegmenter, build_segmenter
from talk2dino.processes import Processes
from talk2dino.segmenter import ClassQuery
from talk2dino.sizes import Protocol

from .conftest import evaluation_of

SMALL = Protocol(short_side=40, long_side=200, window=32, stride=16)


def make_run(root, key="voc", name="run", folders=None, protocol=SMALL):
    dataset = EvaluationSet(dataclasses.replace(BENCHMARKS[key], protocol=protocol), root)
    evaluation = evaluation_of(dataset.benchmark)
    return Run(name, {"benchmark": key}, dataset, evaluation, folders or PictureFolders())


def tasks_of(segmenter, calls=None):
    def make(runs):
        if calls is not None:
            calls.append([run.name for run in runs])
        return [
            Task(
                segmenter,
                ClassQuery.of_rows(
                    segmenter.embed_classes(run.dataset.prompted_classes),
                    0.01 if run.dataset.benchmark.background else None,
                ),
            )
            for run in runs
        ]

    return make


def job(output, **settings):
    return Job(output, output, torch.device("cpu"), **settings)


def evaluated(runs, make, output, **settings):
    """What is counted then, and how many images of it now."""
    more = {name: settings.pop(name) for name in ("processes", "progress") if name in settings}
    counts, timing = evaluate_group(job(output, **settings), runs, make, **more)
    return counts, timing["images"] if timing else 0


def areas(counts, run):
    ordered = [counts[run.name][index].pairs for index in range(len(run.dataset.samples))]
    return stacked_areas(ordered, len(run.dataset.classes))


def assert_equal(ours, theirs):
    for key, value in theirs.items():
        assert np.array_equal(ours[key], value), key


def test_pictures_that_a_benchmark_passes_over_are_named(tmp_path, caplog):
    row = BENCHMARKS["ade20k"]
    for folder, names in ((row.images, ["a.jpg", "b.JPEG"]), (row.labels, ["a.png"])):
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            Image.new("L", (4, 4), 1).save(tmp_path / folder / name)
    check_files(EvaluationSet(row, tmp_path))
    assert "do not end in .jpg: 'b.JPEG'" in caplog.text


def test_label_maps_of_a_benchmark_are_in_one_folder_unless_names_repeat(tmp_path):
    row = BENCHMARKS["cityscapes"]
    (tmp_path / row.labels).mkdir(parents=True)
    for names in (["bonn/a", "ulm/b"], ["bonn/a", "ulm/a", "ulm/b"]):
        for name in names:
            path = tmp_path / row.images / f"{name}{row.image_suffixes[0]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        found = [sample.name for sample in EvaluationSet(row, tmp_path).samples]
        shown = [name[-1] for name in names] if len(names) == 2 else names
        assert found == [f"{name}_leftImg8bit" for name in shown]


def test_a_damaged_picture_is_never_scored_in_part(make_voc):
    dataset = EvaluationSet(BENCHMARKS["voc"], make_voc(1))
    path = dataset.data_root / dataset.samples[0].image
    path.write_bytes(path.read_bytes()[:-100])  # OpenCV shows what is left
    with pytest.raises(ValueError, match=f"{path.name} is truncated or damaged"):
        dataset.read_image(0)


def test_relabelled_files_of_equal_size_are_other_data(make_voc):
    root = make_voc(2)
    dataset = EvaluationSet(BENCHMARKS["voc"], root)
    before = fingerprint(dataset)
    assert fingerprint(EvaluationSet(BENCHMARKS["voc"], root)) == before
    label = dataset.data_root / dataset.samples[1].label
    content = label.read_bytes()
    label.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fingerprint(dataset) != before


def test_counts_are_those_of_the_saved_predictions(make_voc, by_colour, tmp_path):
    run = make_run(make_voc(3), folders=PictureFolders(tmp_path / "maps"))
    found = areas(evaluated([run], tasks_of(by_colour), tmp_path / "out")[0], run)
    for index, sample in enumerate(run.dataset.samples):
        predicted = np.asarray(Image.open(tmp_path / "maps" / f"{sample.name}.png"))
        expected = plain_areas(predicted, run.dataset.read_label(index), 21)
        for name, row in zip(("intersect", "pred_area", "label_area"), expected, strict=True):
            assert np.array_equal(found[name][index], row), name
    assert found["confusion"].sum() == found["label_area"].sum() == 3 * 40 * 56


def test_slices_merge_to_the_whole(make_voc, by_colour, tmp_path):
    run = make_run(make_voc(7))
    whole = areas(evaluated([run], tasks_of(by_colour), tmp_path / "whole")[0], run)
    calls = []
    make = tasks_of(by_colour, calls)
    for number, images in ((2, 2), (0, 3), (1, 2)):
        done = evaluated([run], make, tmp_path / "slices", job_id=number, num_jobs=3)
        assert done[1] == images
    assert_equal(areas(done[0], run), whole)
    assert evaluated([run], make, tmp_path / "slices")[1] == 0
    assert len(calls) == 3  # no models where nothing is to be done


def test_of_slices_that_run_at_once_the_last_sees_all(make_voc, by_colour, tmp_path):
    run = make_run(make_voc(7))
    whole = areas(evaluated([run], tasks_of(by_colour), tmp_path / "whole")[0], run)

    def others_first(runs):  # they start after this job has looked, and finish before it does
        for number in (1, 2):
            make = tasks_of(by_colour)
            evaluated([run], make, tmp_path / "slices", job_id=number, num_jobs=3)
        return tasks_of(by_colour)(runs)

    counts, images = evaluated([run], others_first, tmp_path / "slices", num_jobs=3)
    assert images == 3
    assert_equal(areas(counts, run), whole)


def test_images_whose_counts_are_gone_or_cut_short_are_counted_again(make_voc, by_colour, tmp_path):
    run = make_run(make_voc(4))
    whole = areas(evaluated([run], tasks_of(by_colour), tmp_path)[0], run)
    paths = [tmp_path / "counts" / run.name / f"{index}.npz" for index in range(4)]
    for path, end in zip(paths, (0, 5, -1, None), strict=True):  # a power cut; a kill leaves none
        path.write_bytes(path.read_bytes()[:end])
    paths[3].unlink()
    counts, images = evaluated([run], tasks_of(by_colour), tmp_path)
    assert images == 4
    assert_equal(areas(counts, run), whole)


def test_label_maps_that_are_missing_are_made_again(make_voc, by_colour, tmp_path):
    folders = PictureFolders(tmp_path / "maps", tmp_path / "coloured", tmp_path / "truth")
    run = make_run(make_voc(3), folders=folders)
    evaluated([run], tasks_of(by_colour), tmp_path / "out")
    (tmp_path / "maps" / "000001.png").unlink()
    assert evaluated([run], tasks_of(by_colour), tmp_path / "out")[1] == 1
    for folder, mode in (("maps", "L"), ("coloured", "P"), ("truth", "P")):
        assert len(list((tmp_path / folder).glob("*.png"))) == 3
        with Image.open(tmp_path / folder / "000001.png") as image:
            assert (image.mode, image.size) == (mode, (56, 40))
    truth = Image.open(tmp_path / "truth" / "000001.png")
    assert np.array_equal(np.asarray(truth), run.dataset.read_label(1))
    colours = np.asarray(truth.convert("RGB"))
    assert np.array_equal(colours, run.dataset.palette[run.dataset.read_label(1)])


class OneOfTwo(Processes):
    """The first of two processes; the other one has the label maps of all images but 1 and 3."""

    def gather(self, value):
        return [value] if isinstance(value, dict) else [value, {1, 3}]


def test_processes_divide_the_same_list_of_missing_label_maps(make_voc, by_colour, tmp_path):
    run = make_run(make_voc(4))
    evaluated([run], tasks_of(by_colour), tmp_path / "out")
    run = dataclasses.replace(run, folders=PictureFolders(tmp_path / "maps"))
    processes = OneOfTwo(rank=0, count=2)
    done = evaluated([run], tasks_of(by_colour), tmp_path / "out", processes=processes)
    assert done[1] == 2
    assert [path.name for path in (tmp_path / "maps").glob("*.png")] == ["000001.png"]


def test_counts_of_other_settings_are_refused(make_voc, by_colour, tmp_path):
    run = make_run(make_voc(1))
    evaluated([run], tasks_of(by_colour), tmp_path)
    other = dataclasses.replace(run, settings={"benchmark": "voc", "pamr": True})
    for changed, settings in ((other, {}), (run, {"batching": Batching(3)})):
        with pytest.raises(ValueError, match="made with other settings"):
            evaluated([changed], tasks_of(by_colour), tmp_path, **settings)


def test_only_benchmarks_with_the_same_images_share_a_pass(miniatures):
    runs = [make_run(miniatures, key, key) for key in BENCHMARKS]
    groups = [{run.name for run in group} for group in group_runs(runs)]
    assert {"voc", "voc20"} in groups
    assert {"context", "context59"} in groups
    assert {"coco_stuff", "coco_object"} in groups
    assert len(groups) == 5


@pytest.fixture(scope="module")
def toy():
    """Talk2DINO's toy with small windows."""
    settings = {"projection_weights": "seeded:0", "input_size": 112}
    return build_segmenter(read_segmenter_config("configs/toy.yaml", **settings))


def test_the_backbone_runs_once_for_two_benchmarks(toy, miniatures, tmp_path, monkeypatch):
    segmenter, config, windows = toy, toy.config, []
    forward = segmenter.vision.forward
    monkeypatch.setattr(segmenter.vision, "forward", lambda x: windows.append(len(x)) or forward(x))
    runs = [make_run(miniatures, key, key, protocol=Protocol()) for key in ("voc", "voc20")]

    def make(runs):
        both = [segmenter.variant(clean_background=True), segmenter]
        return [
            Task(one, ClassQuery.of_rows(one.embed_classes(["cat", "dog"]), threshold))
            for one, threshold in zip(both, (0.52, None), strict=True)
        ]

    together, _ = evaluated(runs, make, tmp_path / "together")
    assert sum(windows) == 7  # of three images
    alone, _ = evaluated([runs[1]], lambda _: [make(runs)[1]], tmp_path / "alone")
    assert_equal(areas(together, runs[1]), areas(alone, runs[1]))
    assert not segmenter.shares_features(object())
    other = Talk2DinoSegmenter(
        segmenter.vision, segmenter.text, load_projection(config.projection, "seeded:1"), config
    )
    assert not segmenter.shares_features(other)


@pytest.mark.parametrize("across_images", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_an_image_does_not_depend_on_its_neighbours(toy, across_images, clean):
    segmenter = toy.variant(clean_background=clean)
    query = ClassQuery.of_rows(segmenter.embed_classes(["cat", "dog", "tree"]), 0.52)
    task = Task(segmenter, query)
    protocol = Protocol(window=64, stride=32)
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        for size in ((64, 90), (64, 64), (64, 150), (50, 70), (64, 100))
    ]

    def labels(chosen):
        pictures = [Picture(image, (80, 100), [task]) for image in chosen]
        batching = Batching(4, across_images)
        found = list(label_pictures(pictures, protocol, batching, torch.device("cpu")))
        assert [picture for picture, _ in found] == pictures
        return [maps[0] for _, maps in found]

    for alone, together in zip([labels([i])[0] for i in images], labels(images), strict=True):
        equal = (alone == together).float().mean()
        assert equal >= (0.999 if across_images else 1)


def test_runs_on_the_same_labels_read_a_file_once(miniatures, by_colour, tmp_path, monkeypatch):
    read = []
    original = EvaluationSet.read_label_file

    def noted(self, index):
        read.append((self.benchmark.key, index))
        return original(self, index)

    monkeypatch.setattr(EvaluationSet, "read_label_file", noted)
    runs = [make_run(miniatures, key, key) for key in ("voc", "voc20")]
    counts, _ = evaluated(runs, tasks_of(by_colour), tmp_path)
    assert sorted(read) == [("voc", 0), ("voc", 1), ("voc", 2)]
    labelled = [areas(counts, run)["label_area"] for run in runs]
    assert np.array_equal(labelled[0][:, 1:], labelled[1])  # voc20 ignores voc's first class


def test_pixels_and_labels_for_a_gpu_are_pinned(make_voc, by_colour, monkeypatch):
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self: pinned.append(tuple(self.shape)) or self
    )
    run = make_run(make_voc(1))
    tasks = tasks_of(by_colour)([run])
    for pin, expected in ((False, []), (True, [(40, 56, 3), (40, 56)])):
        picture = job_module._read([run], tasks, 0, pin)
        assert pinned == expected
        assert picture.image.shape == (3, 40, 56)


@pytest.mark.parametrize(
    ("kind", "order"),
    [("cpu", "start 0, count 0, start 1, count 1"), ("cuda", "start 0, start 1, count 0, count 1")],
)
def test_a_gpu_gets_the_next_image_before_counts_are_waited_for(make_voc, monkeypatch, kind, order):
    calls = []
    device = SimpleNamespace(type=kind)
    task = SimpleNamespace(query=SimpleNamespace(rows=SimpleNamespace(device=device)))
    pictures = [SimpleNamespace(payload=(n, [n]), uniform=None) for n in range(2)]

    def label(*_):
        for picture in pictures:
            calls.append(f"start {picture.payload[0]}")
            yield picture, []

    monkeypatch.setattr(job_module, "label_pictures", label)
    begin = lambda maps, targets, *_: lambda: calls.append(f"count {targets[0]}") or []  # noqa: E731
    monkeypatch.setattr(job_module, "begin_count", begin)
    found = list(job_module._results(job(None), [make_run(make_voc(2))], [task], [0, 1]))
    assert found == [(0, []), (1, [])]
    assert ", ".join(calls) == order


@pytest.mark.parametrize(("kind", "other"), [("cuda", "bincount"), ("mps", "scatter_add_")])
def test_on_nvidias_gpus_pairs_of_classes_are_counted_without_knowing_the_largest(
    monkeypatch, kind, other
):
    numbers = torch.randint(0, 30, (200,))
    expected = numbers.bincount(minlength=30)
    monkeypatch.setattr(torch.Tensor, "device", SimpleNamespace(type=kind))
    monkeypatch.setattr(torch.Tensor, other, None)
    assert torch.equal(metrics._bins(numbers, 30), expected)


def test_what_is_known_of_an_image_is_kept_with_its_counts(tmp_path):
    pairs = np.array([(1, 2, 70_000)], PAIR)
    seams = np.array([4, 2])
    keep_counts(tmp_path, 3, ImageCounts(pairs))
    keep_counts(tmp_path, 12, ImageCounts(pairs[:0], 2, pairs, seams))
    found = kept_counts(tmp_path)
    assert found.keys() == {3, 12}
    assert vars(found[3]) == {"pairs": pairs, "uniform": None, "boundary": None, "seams": None}
    assert (len(found[12].pairs), found[12].uniform) == (0, 2)
    assert found[12].boundary.tolist() == pairs.tolist() and found[12].seams.tolist() == [4, 2]


def test_uniform_windows_are_counted_per_image():
    class Uniform:
        """Of one channel; a window is uniform where it is black."""

        def shares_features(self, other):
            return True

        def patch_features(self, windows):
            return windows.mean(dim=1, keepdim=True)

        def score_features(self, features, windows, query):
            return features

        def uniform_windows(self, features):
            return [bool(window.amax() == 0) for window in features]

    image = torch.zeros(3, 8, 24, dtype=torch.uint8)
    image[..., 16:] = 9
    protocol = Protocol(short_side=8, window=8, stride=8)
    tasks = [Task(Uniform(), ClassQuery.of_rows(torch.ones(1, 1)))]
    pictures = [Picture(some, (8, 24), tasks) for some in (image, image.flip(2) + 1)]
    found = label_pictures(pictures, protocol, Batching(4, across_images=True), torch.device("cpu"))
    assert [picture.uniform for picture, _ in found] == [2, 0]


def random_maps(*classes, size=(9, 7)):
    """Predictions and ground truths of random labels, a part of which is ignored."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randint(0, count, size, generator=generator) for count in classes]
    targets = [torch.randint(0, count, size, generator=generator) for count in classes]
    for target, count in zip(targets, classes, strict=True):
        target[:4] = ignored_label(count)
    return maps, [target.to(torch.uint16) for target in targets]


def plain_areas(predicted, target, classes):
    """What `stacked_areas` of one image must be, counted class by class."""
    counted = target != (255 if classes < 256 else 65535)
    found = np.zeros((3, classes), np.int64)
    for label in range(classes):
        true, guess = (target == label) & counted, (predicted == label) & counted
        found[:, label] = (true & guess).sum(), guess.sum(), true.sum()
    return found


@pytest.mark.parametrize("classes", [(3, 5), (200, 256, 257, 300), (1000,)])
def test_counts_of_an_image_are_those_of_its_benchmarks(classes):
    maps, targets = random_maps(*classes)
    for image, predicted, target, count in zip(
        begin_count(maps, targets, classes)(), maps, targets, classes, strict=True
    ):
        stacked = stacked_areas([image.pairs, image.pairs], count)
        expected = plain_areas(predicted.numpy(), target.numpy(), count)
        for name, areas in zip(("intersect", "pred_area", "label_area"), expected, strict=True):
            assert stacked[name].tolist() == [areas.tolist()] * 2
        counted, confusion = target != ignored_label(count), np.zeros((count, count))
        np.add.at(confusion, (target[counted].numpy(), predicted[counted].numpy()), 1)
        assert np.array_equal(stacked["confusion"], 2 * confusion)
    with pytest.raises(ValueError, match="labels outside 0 to"):
        begin_count([maps[-1] + classes[-1]], targets[-1:], classes[-1:])()


def test_of_more_classes_than_a_table_holds_there_is_no_confusion(tmp_path):
    maps, targets = random_maps(6000)
    stacked = stacked_areas([begin_count(maps, targets, (6000,))()[0].pairs], 6000)
    assert "confusion" not in stacked and stacked["label_area"].sum() == 35
    write_result(tmp_path, "a", {}, stacked)
    assert np.array_equal(read_counts(tmp_path / "a.json")["union"], stacked["union"])
    assert not resampled_mious([(stacked["intersect"], stacked["union"])], 9).any()


def test_counts_that_earlier_versions_kept_sparse_are_read(tmp_path):
    union = np.array([[0, 3, 0], [5, 0, 0]])
    rows, columns = np.nonzero(union)
    sparse = {"rows": rows, "columns": columns, "values": union[rows, columns], "shape": (2, 3)}
    names = [(name, part) for name in ("union", "confusion") for part in sparse]
    np.savez(tmp_path / "a.npz", **{f"{name}.{part}": sparse[part] for name, part in names})
    found = read_counts(tmp_path / "a.json")
    assert list(found) == ["union"] and np.array_equal(found["union"], union)


@dataclass
class MemoryBar:
    """Notes the resident memory after every image."""

    mebibytes: list

    def update(self, n=1):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.mebibytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_images(make_voc, by_colour, tmp_path):
    run = make_run(make_voc(200))
    bar = MemoryBar([])
    progress = lambda total, done: nullcontext(bar)  # noqa: E731
    evaluated([run], tasks_of(by_colour), tmp_path, progress=progress)
    assert len(bar.mebibytes) == 200
    assert max(bar.mebibytes[100:]) - max(bar.mebibytes[20:60]) < 24


def test_a_threshold_belongs_to_a_background():
    with pytest.raises(ValueError, match="voc20 has no background class for bg_thresh"):
        dataclasses.replace(evaluation_of(BENCHMARKS["voc20"]), bg_thresh=0.5)


def test_a_share_of_a_job_must_make_sense():
    with pytest.raises(ValueError, match="job 3 of 3"):
        job(None, job_id=3, num_jobs=3)
    with pytest.raises(ValueError, match="at least 1"):
        job(None, batching=Batching(0))
