"""What `evaluate` runs against versions written as the papers read, which `speed/` measures too."""

import pytest

from speed.peers import literal_labels, problem, shipped_labels


@pytest.mark.parametrize(
    ("model", "size_hw"),
    [
        ("proxyclip_toy", (336, 448)),
        ("clip_dinoiser_toy", (448, 480)),
        ("freeda_toy", (448, 480)),
    ],
)
def test_labels_are_the_literal_ones(model, size_hw):
    segmenter, rows, picture = problem(model, size_hw)
    labels = shipped_labels(segmenter, rows, picture)
    assert labels.unique().numel() > 1
    assert (labels == literal_labels(segmenter, rows, picture)).float().mean() > 0.999
