"""Converted labels against those of the published converters, pixel by pixel."""

from pathlib import Path

import pytest

from talk2dino.benchmarks.data.convert import (
    OBJECT_SUFFIX,
    STUFF_SUFFIX,
    plan_coco,
    run_conversions,
)
from talk2dino.benchmarks.data.labels import read_labels

RECORDED = Path(__file__).parent / "data" / "seg" / "data" / "coco_stuff164k"


@pytest.mark.parametrize("suffix", [OBJECT_SUFFIX, STUFF_SUFFIX])
def test_coco_labels_equal_the_recorded_ones(suffix, tmp_path):
    plan = plan_coco(RECORDED, tmp_path, suffix)
    assert len(plan) == 3
    assert run_conversions(plan, workers=2).failures == []
    for conversion in plan:
        recorded = RECORDED / conversion.target.relative_to(tmp_path)
        assert (read_labels(conversion.target) == read_labels(recorded)).all()
