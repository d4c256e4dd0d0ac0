"""The evaluator against the protocol as it reads: tests/literal/evaluation.py."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("mmseg")

from talk2dino.benchmarks.datasets import EvaluationSet
from talk2dino.benchmarks.job import Job, Run, evaluate_group
from talk2dino.benchmarks.metrics import stacked_areas
from talk2dino.benchmarks.scoring import Batching, Picture, Task, label_pictures
from talk2dino.benchmarks.table import BENCHMARKS
from talk2dino.methods.talk2dino.config import read_segmenter_config
from talk2dino.methods.talk2dino.segmenter import build_segmenter
from talk2dino.segmenter import ClassQuery
from talk2dino.sizes import Protocol
from tests.literal import evaluation as literal

from .conftest import MINIATURES, evaluation_of


@pytest.fixture(scope="module")
def base(root):
    return build_segmenter(
        read_segmenter_config(root / "configs" / "toy.yaml", projection_weights="seeded:0")
    )


def score_as_published(segmenter, query):
    config = segmenter.config
    return lambda window: literal.window_scores(
        segmenter.vision.model,
        window,
        query.rows,
        query.background,
        config.clean_background,
        config.pamr,
    )


def test_areas_of_a_benchmark_are_the_literal_ones(base, tmp_path):
    row = BENCHMARKS["voc"]
    run = Run("voc", {}, EvaluationSet(row, MINIATURES), evaluation_of(row))
    segmenter = base.variant(clean_background=True)
    query = ClassQuery.of_rows(segmenter.embed_classes(run.dataset.prompted_classes), 0.52)
    job = Job(MINIATURES, tmp_path, torch.device("cpu"))
    counts, _ = evaluate_group(job, [run], lambda runs: [Task(segmenter, query)])
    ours = stacked_areas([counts["voc"][index].pairs for index in range(3)], len(row.classes))
    files = [
        (MINIATURES / sample.image, MINIATURES / sample.label) for sample in run.dataset.samples
    ]
    theirs = literal.evaluate(
        files, score_as_published(segmenter, query), len(row.classes), row.rules.shift < 0
    )
    names = ("intersect", "union", "pred_area", "label_area")
    assert np.array_equal(ours["label_area"], theirs[:, 3])
    for index, name in enumerate(names):
        difference = np.abs(ours[name] - theirs[:, index].numpy()).sum()
        assert difference <= 1e-4 * ours["label_area"].sum(), name


def test_labels_with_pamr_cleaning_and_background_are_the_literal_ones(base):
    segmenter = base.variant(clean_background=True, pamr=True)
    query = ClassQuery.of_rows(segmenter.embed_classes(["cat", "dog", "sky", "tree"]), 0.5)
    colours = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 255
    image = F.interpolate(colours, (64, 90), mode="bilinear")[0].byte()
    picture = Picture(image, (70, 99), [Task(segmenter, query)])
    protocol = Protocol(window=64, stride=32)
    ((_, (ours,)),) = label_pictures([picture], protocol, Batching(), torch.device("cpu"))
    with torch.no_grad():
        theirs = literal.image_labels(
            score_as_published(segmenter, query), image[None].float(), (70, 99), 64, 32
        )
    assert (ours == theirs).float().mean() >= 0.999
    assert ours.unique().numel() > 2
