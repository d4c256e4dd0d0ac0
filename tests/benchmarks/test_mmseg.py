"""MMSegmentation's own data sets as the reference: names, files, pictures and labels."""

import logging

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg")

from talk2dino.benchmarks.datasets import EvaluationSet, load_openmmlab, open_dataset
from talk2dino.benchmarks.table import BENCHMARKS, DRAWN_WORLD, STUFF_BACKGROUND
from talk2dino.toy.world import WorldConfig, write_world

from .conftest import MINIATURES


def test_importing_mmcv_silences_no_warning(monkeypatch):
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.root, "handlers", [handler])
    monkeypatch.setattr("mmcv.utils.logging.logger_initialized", {})  # as in a new process
    load_openmmlab.__wrapped__()
    assert handler.level == logging.NOTSET


@pytest.mark.parametrize("key", BENCHMARKS)
def test_every_file_of_a_benchmark_is_read_as_mmsegmentation_reads_it(key):
    ours = EvaluationSet(BENCHMARKS[key], MINIATURES)
    theirs = open_dataset(BENCHMARKS[key], MINIATURES, "mmseg")
    assert ours.samples == theirs.samples and len(ours.samples) > 1
    assert ours.classes == theirs.classes
    assert np.array_equal(ours.palette, theirs.palette)
    dataset = theirs._dataset
    loader = load_openmmlab()[1].LoadAnnotations(dataset.reduce_zero_label)
    dataset.gt_seg_map_loader = loader
    assert theirs.versions.keys() == {"mmcv", "mmseg"} and not ours.versions
    for index in range(len(ours.samples)):
        (image, size), (other, other_size) = ours.read_image(index), theirs.read_image(index)
        assert np.array_equal(image, other) and tuple(size) == tuple(other_size)
        label = dataset.get_gt_seg_map_by_idx(index)
        assert np.array_equal(ours.read_label(index), label)


def test_the_drawn_world_and_unlabelled_stuff_are_no_exceptions(tmp_path):
    write_world(tmp_path, WorldConfig(train_images=1, val_images=1, evaluation_images=2))
    for row, root in ((DRAWN_WORLD, tmp_path), (STUFF_BACKGROUND, MINIATURES)):
        ours, theirs = EvaluationSet(row, root), open_dataset(row, root, "mmseg")
        assert (ours.samples, ours.classes) == (theirs.samples, theirs.classes)
        assert np.array_equal(ours.palette, theirs.palette)
        assert np.array_equal(ours.read_image(1)[0], theirs.read_image(1)[0])
    unlabelled = EvaluationSet(BENCHMARKS["coco_stuff"], MINIATURES)
    raw = unlabelled.read_label(0).astype(int)
    assert np.array_equal(ours.read_label(0), np.where(raw == 255, 0, raw + 1))


def test_an_image_turned_by_exif_is_turned(tmp_path):
    row = BENCHMARKS["ade20k"]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 5, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder, name in ((row.images, "a.jpg"), (row.labels, "a.png")):
        (tmp_path / folder).mkdir(parents=True)
        picture.save(tmp_path / folder / name, exif=exif)
    images = [open_dataset(row, tmp_path, reader).read_image(0) for reader in ("own", "mmseg")]
    assert np.array_equal(images[0][0], images[1][0]) and images[0][1] == (5, 9)


def test_another_reader_is_refused():
    with pytest.raises(ValueError, match="unknown reader 'mmsegg'.*Did you mean 'mmseg'"):
        open_dataset(BENCHMARKS["voc"], MINIATURES, "mmsegg")


def test_counts_agree_with_mmsegmentation():
    import torch
    from mmseg.core.evaluation.metrics import intersect_and_union

    from talk2dino.benchmarks.metrics import begin_count, stacked_areas

    generator = np.random.default_rng(0)
    predicted, label = (generator.integers(0, 21, (40, 56), np.uint8) for _ in range(2))
    label[:5] = 255
    (counts,) = begin_count([torch.from_numpy(predicted)], [torch.from_numpy(label)], [21])()
    found = stacked_areas([counts.pairs], 21)
    expected = intersect_and_union(predicted.copy(), label.copy(), 21, 255)
    for name, row in zip(("intersect", "union", "pred_area", "label_area"), expected, strict=True):
        assert np.array_equal(found[name][0], row.numpy()), name
