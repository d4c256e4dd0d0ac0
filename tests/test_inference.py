"""Windows, averaging and labels, with a segmenter that only looks at colours."""

import math

import numpy as np
import pytest
import torch

from talk2dino.inference import (
    WindowMean,
    picture_scores,
    resize_pixels,
    resize_scores,
    score_labels,
    sliding_window_scores,
    stitching,
)
from talk2dino.segmenter import ClassQuery
from talk2dino.sizes import WHOLE, Protocol, Sizes


class ColourSegmenter:
    """Scores a pixel by the channel of its class; the fake implements the real protocol."""

    def __init__(self):
        self.seen = []

    def embed_classes(self, names):
        return torch.eye(3)[[("red", "green", "blue").index(name) for name in names]]

    def window_scores(self, windows, query):
        classes, background = query.rows, query.background
        assert windows.dtype == torch.float32
        self.seen.append(tuple(windows.shape))
        scores = torch.einsum("bkhw,ck->bchw", windows / 255, classes)
        if background is None:
            return scores
        return torch.cat([torch.full_like(scores[:, :1], background), scores], dim=1)


class PositionSegmenter(ColourSegmenter):
    """Scores depend on the place inside the window, so averaging shows."""

    def window_scores(self, windows, query):
        ramp = torch.arange(windows.shape[-1], dtype=torch.float32)
        return ramp.expand(len(windows), 1, *windows.shape[-2:]).clone()


@pytest.mark.parametrize(
    ("length", "starts"),
    [(100, [0]), (448, [0]), (449, [0, 1]), (672, [0, 224]), (673, [0, 224, 225])],
)
def test_the_last_window_is_shifted_back_inside(length, starts):
    assert [left for _, left in Protocol().corners(448, length)] == starts


@pytest.mark.parametrize("length", [448, 500, 672, 895, 896, 2048])
def test_the_number_of_windows_is_the_published_one_and_all_pixels_are_covered(length):
    starts = [top for top, _ in Protocol().corners(length, 448)]
    assert len(starts) == max(length - 448 + 223, 0) // 224 + 1
    covered = np.zeros(length)
    for start in starts:
        covered[start : start + 448] += 1
    assert covered.min() >= 1


def test_a_whole_image_is_one_window_and_integers_become_float():
    segmenter = ColourSegmenter()
    image = torch.zeros(3, 5, 7, dtype=torch.uint8)
    image[2] = 255
    query = ClassQuery.of_rows(segmenter.embed_classes(["red", "blue"]), background=0.5)
    scores = picture_scores(segmenter, image, query, WHOLE)
    assert segmenter.seen == [(1, 3, 5, 7)]
    assert scores.shape == (3, 5, 7) and score_labels(scores).unique().tolist() == [2]


def test_sliding_windows_equal_the_whole_image_for_a_segmenter_without_context():
    segmenter = ColourSegmenter()
    image = torch.randint(0, 256, (3, 45, 31), generator=torch.Generator().manual_seed(0))
    query = ClassQuery.of_rows(segmenter.embed_classes(["red", "green", "blue"]), background=0.3)
    whole = picture_scores(segmenter, image, query, WHOLE)
    for batch_size in (1, 4, 100):
        windows = Protocol(window=16, stride=7)
        scores = sliding_window_scores(segmenter, image, query, windows, batch_size)
        torch.testing.assert_close(scores, whole)


def test_overlapping_windows_are_averaged():
    query = ClassQuery.of_rows(torch.eye(1, 3))
    scores = sliding_window_scores(
        PositionSegmenter(), torch.zeros(3, 4, 6), query, Protocol(window=4, stride=2)
    )
    assert scores[0, 0].tolist() == [0, 1, (2 + 0) / 2, (3 + 1) / 2, 2, 3]


def test_a_mean_of_no_windows_is_refused_and_corners_go_row_by_row():
    with pytest.raises(RuntimeError, match="no window"):
        WindowMean((4, 6)).scores()
    assert Protocol(window=4, stride=2).corners(4, 6) == [(0, 0), (0, 2)]
    assert Protocol(window=4, stride=2).corners(6, 4) == [(0, 0), (2, 0)]


def test_labels_are_the_first_best_classes():
    scores = torch.tensor([[[1.0, 2.0]], [[1.0, 3.0]], [[0.0, 3.0]]])
    labels = score_labels(scores)
    assert labels.tolist() == [[0, 1]] and labels.dtype == torch.int64


def test_a_side_shorter_than_the_window_is_used_whole():
    segmenter = ColourSegmenter()
    query = ClassQuery.of_rows(segmenter.embed_classes(["red"]))
    scores = sliding_window_scores(segmenter, torch.zeros(3, 100, 500), query)
    assert scores.shape == (1, 100, 500) and segmenter.seen == [(2, 3, 100, 448)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((375, 500), (448, 597)), ((1024, 2048), (448, 896)), ((100, 2000), (102, 2048))],
)
def test_benchmark_sizes(size, expected):
    assert Protocol().scored_size(*size) == expected


def test_pixels_and_scores_are_resized_to_height_by_width():
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    pixels[:, 10:] = 255
    assert resize_pixels(pixels, (5, 8)).shape == (5, 8, 3)
    assert resize_pixels(pixels, (10, 20)) is pixels
    scores = torch.tensor([[[0.0, 1.0]]])
    assert resize_scores(scores, (1, 4)).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]
    assert resize_scores(scores, (1, 2)) is scores


def test_impossible_input_is_refused():
    query = ClassQuery.of_rows(torch.eye(3))
    for image in (torch.zeros(5, 5), torch.zeros(1, 5, 5), torch.zeros(3, 0, 5)):
        with pytest.raises(ValueError, match=r"an image must be \(3, H, W\) RGB"):
            picture_scores(ColourSegmenter(), image, query, WHOLE)
    with pytest.raises(ValueError, match=r"rows must be \(Q, D\)"):
        ClassQuery.of_rows(torch.zeros(3))
    with pytest.raises(ValueError, match="leaves gaps"):
        Protocol(window=4, stride=5)
    with pytest.raises(ValueError, match="must be positive"):
        Protocol(stride=0)


@pytest.mark.parametrize("length", [1, 8, 9])
def test_a_hann_window_counts_least_at_its_border_and_nowhere_nothing(length):
    found = stitching(Protocol(stitch="hann"), length)
    places = [0.501 - 0.5 * math.cos(2 * math.pi * (i + 0.5) / length) for i in range(length)]
    torch.testing.assert_close(found, torch.tensor(places))
    assert stitching(Protocol(), length).tolist() == [1] * length


def test_the_weights_of_a_window_are_made_once_for_all_windows_of_its_size(monkeypatch):
    made = []

    def counted(protocol, length):
        made.append(length)
        return stitching(protocol, length)

    monkeypatch.setattr("talk2dino.inference.stitching", counted)
    mean = WindowMean((13, 37), Protocol(window=17, stride=10, stitch="hann"))
    for left in (0, 10, 20):
        mean.add((0, left), torch.ones(2, 13, 17))
    assert made == [13, 17]


@pytest.mark.parametrize("stitch", ["uniform", "hann"])
def test_windows_are_averaged_as_pixel_by_pixel(stitch):
    protocol = Protocol(short_side=None, window=8, stride=5, stitch=stitch)
    height, width = 8, 19
    generator = torch.Generator().manual_seed(0)
    mean = WindowMean((height, width), protocol)
    total, hits = torch.zeros(2, height, width), torch.zeros(height, width)
    for corner in protocol.corners(height, width):
        scores = torch.rand(2, 8, 8, generator=generator)
        mean.add(corner, scores)
        for y in range(8):
            for x in range(8):
                weight = 1.0
                if stitch == "hann":
                    for place in (y, x):
                        weight *= 0.501 - 0.5 * math.cos(2 * math.pi * (place + 0.5) / 8)
                total[:, corner[0] + y, corner[1] + x] += weight * scores[:, y, x]
                hits[corner[0] + y, corner[1] + x] += weight
    torch.testing.assert_close(mean.scores(), total / hits)


@pytest.mark.parametrize(
    ("sizes", "protocol", "found"),
    [
        (Sizes(), Protocol(), Protocol()),
        (Sizes(short_side=896), Protocol(), Protocol(short_side=896, long_side=4096)),
        (Sizes(short_side=300), Protocol(), Protocol(short_side=300)),
        (Sizes(window=300), WHOLE, Protocol(short_side=None, window=300)),
        (Sizes(stitch="hann"), Protocol(), Protocol(stitch="hann")),
        (Sizes(stride=1), WHOLE, "mean nothing where the whole image is one window"),
        (Sizes(stitch="hann"), WHOLE, "mean nothing where"),
        (Sizes(window=200), Protocol(), "stride of 224 leaves gaps.*Choose one of at most 200"),
        (Sizes(short_side=0), Protocol(), "must be positive"),
        (Sizes(stitch="ham"), Protocol(), "unknown stitch 'ham'"),
    ],
)
def test_sizes_replace_those_of_a_protocol(sizes, protocol, found):
    if isinstance(found, Protocol):
        assert sizes.of(protocol) == found
    else:
        with pytest.raises(ValueError, match=found):
            sizes.of(protocol)
