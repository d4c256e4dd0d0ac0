"""Labels straight from patch scores: the same as step by step, in the memory one allows."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from talk2dino.backbones.vision import PatchFeatures
from talk2dino.benchmarks import scoring
from talk2dino.benchmarks.metrics import begin_count
from talk2dino.benchmarks.scoring import (
    Batching,
    Labelling,
    Picture,
    Task,
    label_pictures,
    spreading_matrix,
)
from talk2dino.inference import (
    final_scores,
    picture_scores,
    resize_scores,
    score_labels,
    sliding_window_scores,
)
from talk2dino.methods.dense import DenseSegmenter
from talk2dino.methods.talk2dino.config import read_segmenter_config
from talk2dino.methods.talk2dino.segmenter import build_segmenter
from talk2dino.refine.refinement import RefinementOptions
from talk2dino.segmenter import ClassQuery, FeatureSharing, PatchScoring
from talk2dino.sizes import Protocol

CPU = torch.device("cpu")
PROTOCOL = Protocol(window=64, stride=32)
MIB = 1 << 20


@pytest.fixture(scope="module")
def base(root):
    return build_segmenter(
        read_segmenter_config(
            root / "configs" / "toy.yaml", projection_weights="seeded:0", input_size=112
        )
    )


def image(height, width):
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def step_by_step(segmenter, pixels, size_hw, query, protocol=PROTOCOL):
    """The plain way, which a reader meets first."""
    scores = sliding_window_scores(segmenter, pixels, query, protocol)
    return score_labels(resize_scores(scores, size_hw))


def picture_scores_at(segmenter, pixels, size_hw, query):
    """Final scores of a picture at the size of its labels, the plain way."""
    scores = resize_scores(sliding_window_scores(segmenter, pixels, query, PROTOCOL), size_hw)
    return final_scores(segmenter, scores, pixels, query)


def labels_of(segmenter, pixels, size_hw, query, protocol=PROTOCOL, **batching):
    pictures = [Picture(pixels, size_hw, [Task(segmenter, query)])]
    ((_, (labels,)),) = label_pictures(pictures, protocol, Batching(**batching), CPU)
    return labels


def spread(segmenter, patches, pixels, size_hw, query, *most_bytes):
    """The labels of patch scores."""
    task = Task(segmenter, query)
    return Labelling(task, pixels, size_hw, PROTOCOL, *most_bytes).of_patches(patches)


class WholeWindows:
    """Hides everything of a segmenter but what the plain protocol asks for."""

    def __init__(self, segmenter):
        self.embed_classes, self.window_scores = segmenter.embed_classes, segmenter.window_scores


class SharingWindows(WholeWindows):
    """A segmenter that shares features, but scores no patches."""

    def __init__(self, segmenter):
        super().__init__(segmenter)
        self.patch_features, self.score_features = (
            segmenter.patch_features,
            segmenter.score_features,
        )

    def shares_features(self, other):
        return False


@pytest.mark.parametrize("wrap", [lambda segmenter: segmenter, SharingWindows, WholeWindows])
@pytest.mark.parametrize("options", [{}, {"pamr": True}, {"clean_background": True}])
@pytest.mark.parametrize("background", [None, 0.5])
@pytest.mark.parametrize(
    ("scored", "size_hw"), [((64, 64), (64, 64)), ((64, 150), (80, 101)), ((130, 50), (97, 60))]
)
def test_labels_are_those_of_the_plain_steps(base, wrap, options, background, scored, size_hw):
    segmenter = wrap(base.variant(**options))
    query = ClassQuery.of_rows(base.embed_classes(["cat", "dog", "sky", "tree", "car"]), background)
    pixels = image(*scored)
    expected = step_by_step(base.variant(**options), pixels, size_hw, query)
    for score_bytes in (MIB, 1):  # one byte: a row or a class at a time
        labels = labels_of(segmenter, pixels, size_hw, query, size=2, score_bytes=score_bytes)
        assert labels.shape == size_hw and labels.dtype == torch.int64
        assert (labels == expected).float().mean() >= 0.999
    assert expected.unique().numel() > 1


@pytest.mark.parametrize("background", [None, 0.5])
def test_corners_that_are_not_aligned_are_spread_as_step_by_step(base, background):
    segmenter, plain = base.variant(), base.variant()
    segmenter.aligned_corners = False
    query = ClassQuery.of_rows(base.embed_classes(["cat", "dog", "sky", "tree"]), background)
    pixels = image(64, 150)
    found = labels_of(segmenter, pixels, (80, 101), query)
    expected = step_by_step(segmenter, pixels, (80, 101), query)
    assert (found == expected).float().mean() >= 0.999
    assert (found == labels_of(plain, pixels, (80, 101), query)).float().mean() < 0.999


@pytest.mark.parametrize("pamr", [False, True])
def test_hann_windows_are_spread_as_step_by_step(base, pamr):
    protocol, segmenter = replace(PROTOCOL, stride=24, stitch="hann"), base.variant(pamr=pamr)
    query = ClassQuery.of_rows(base.embed_classes(["cat", "dog", "sky", "tree"]))
    pixels = image(70, 150)
    found = labels_of(segmenter, pixels, (80, 101), query, protocol)
    expected = step_by_step(segmenter, pixels, (80, 101), query, protocol)
    assert (found == expected).float().mean() >= 0.999
    uniform = labels_of(segmenter, pixels, (80, 101), query, replace(protocol, stitch="uniform"))
    assert (found == uniform).float().mean() < 0.999


class Finishing:
    """Probabilities of the classes, brighter where the picture is, over averaged scores."""

    def __init__(self, segmenter, pixelwise):
        self.patch_features, self.pixel_scores = segmenter.patch_features, segmenter.pixel_scores
        self.patch_scores, self.window_scores = segmenter.patch_scores, segmenter.window_scores
        self.score_features, self.aligned_corners = segmenter.score_features, True
        self.follows_edges, self.pixelwise, self.heights = segmenter.follows_edges, pixelwise, []
        self.joins_windows = False

    def shares_features(self, other):
        return False

    def finalise(self, scores, image, query):
        assert image.shape[-2:] == scores.shape[-2:]
        self.heights.append(scores.shape[1])
        whole = 0 if self.pixelwise else scores.mean(dim=(1, 2), keepdim=True)
        scores = (scores - whole) * 100 + image.mean(dim=0) / 255
        return torch.cat([scores[:1] + image[0] / 64 - 2, scores[1:]])


@pytest.mark.parametrize("pamr", [False, True])
@pytest.mark.parametrize("by_patch", [True, False])
@pytest.mark.parametrize("pixelwise", [True, False])
def test_what_finalises_sees_strips_or_the_whole_with_the_same_result(
    base, pixelwise, by_patch, pamr
):
    query = ClassQuery.of_rows(base.embed_classes(["cat", "dog", "sky", "tree"]))
    pixels, size_hw = image(64, 150), (80, 101)
    segmenter = Finishing(base.variant(pamr=pamr), pixelwise)
    if not by_patch:
        del segmenter.patch_scores
    scores = picture_scores_at(segmenter, pixels, size_hw, query)
    for score_bytes in (1 << 15, MIB):
        segmenter.heights = []
        found = labels_of(segmenter, pixels, size_hw, query, score_bytes=score_bytes)
        assert (found == score_labels(scores)).float().mean() >= 0.999
        strips = pixelwise and not (by_patch and pamr) and score_bytes < MIB
        assert (len(segmenter.heights) > 1) == strips
        assert sum(segmenter.heights) == 80
    assert found.unique().numel() > 1


def test_what_a_segmenter_offers_decides_how_it_is_used(base):
    assert isinstance(base, PatchScoring)
    assert isinstance(SharingWindows(base), FeatureSharing)
    assert not isinstance(SharingWindows(base), PatchScoring)
    assert not isinstance(WholeWindows(base), FeatureSharing)
    assert base.variant(pamr=True).follows_edges and not base.follows_edges


def test_the_matrix_of_an_axis_does_upsampling_mean_and_resizing():
    cells = torch.tensor([[0.0, 3.0], [6.0, 9.0]])  # two windows of two patches
    upsampled = torch.tensor([[1, 2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3, 1]])
    protocol = Protocol(window=4, stride=2)
    matrix = spreading_matrix(6, 6, protocol, upsampled)
    # Aligned corners: 0 1 2 3 and 6 7 8 9; the windows share the two pixels in the middle.
    expected = [0, 1, (2 + 6) / 2, (3 + 7) / 2, 8, 9]
    assert (matrix @ cells.flatten()).tolist() == pytest.approx(expected)
    halved = spreading_matrix(3, 6, protocol, upsampled)
    assert (halved @ cells.flatten()).tolist() == pytest.approx([0.5, 4.5, 8.5])
    torch.testing.assert_close(halved.sum(dim=1), torch.ones(3))


def test_matrices_are_made_once_per_length_and_segmenter(base, monkeypatch):
    made, original = [], scoring.spreading_matrix
    noting = lambda *lengths: made.append(lengths[:2]) or original(*lengths)  # noqa: E731
    monkeypatch.setattr(scoring, "spreading_matrix", noting)
    query = ClassQuery.of_rows(base.embed_classes(["cat", "dog"]))
    for _ in range(2):
        segmenter = base.variant()
        for width in (150, 120, 150):
            pixels = image(64, width)
            labels = labels_of(segmenter, pixels, (80, 101), query)
            assert torch.equal(labels, step_by_step(segmenter, pixels, (80, 101), query))
    lengths = [(80, 64), (101, 150), (101, 120)]
    assert made == 2 * lengths
    kept = weakref.ref(segmenter)
    del segmenter
    gc.collect()
    assert kept() is None, "matrices do not keep a model in memory"


@pytest.mark.parametrize("stitch", ["uniform", "hann"])
@pytest.mark.parametrize("owner", [None, torch.tensor([0, 1, 1])])
def test_nothing_of_a_picture_is_asked_for_before_the_next(base, monkeypatch, stitch, owner):
    rows = base.embed_classes(["cat", "dog", "horse"])
    query = ClassQuery(tuple("abc" if owner is None else "ab"), rows, owner)
    protocol, asked = replace(PROTOCOL, stitch=stitch), []
    target = torch.zeros(80, 101, dtype=torch.uint8)

    def launch(segmenter):
        pictures = [Picture(image(64, 150), (80, 101), [Task(segmenter, query)])]
        for _, maps in label_pictures(pictures, protocol, Batching(), CPU):
            begin_count(maps, [target], [len(query.names)])

    segmenters = [base.variant(), base.variant(pamr=True)]
    for segmenter in segmenters:
        launch(segmenter)  # makes what pictures of a size share
    monkeypatch.setattr("talk2dino.benchmarks.metrics.Fetched", lambda tensors: None)
    for name in ("cpu", "item", "tolist", "numpy", "__int__", "__float__", "__bool__"):
        noting = lambda self, name=name: asked.append(name)  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, noting)
    for segmenter in segmenters:
        launch(segmenter)
    monkeypatch.undo()
    assert asked == []


@pytest.mark.parametrize("most_bytes", [1, 4 * 31 * 47 * 3, MIB])
def test_many_classes_are_compared_in_parts(most_bytes):
    scores = torch.rand(13, 20, 30, generator=torch.Generator().manual_seed(0))
    scores[7] = scores[3]  # a tie everywhere: the first one wins
    whole = score_labels(resize_scores(scores, (31, 47)))
    query = ClassQuery.of_rows(torch.eye(13))
    pixels = torch.zeros(3, 20, 30)
    labels = Labelling(Task(None, query), pixels, (31, 47), PROTOCOL, most_bytes).of_scores(scores)
    assert torch.equal(labels, whole)
    assert not (whole == 7).any()


@pytest.mark.parametrize("pamr", [False, True])
def test_the_first_label_wins_a_tie(base, pamr):
    scores, rows = torch.full((1, 4, 8, 8), 0.5), torch.eye(4)
    pixels = image(64, 64).float()
    segmenter = base.variant(pamr=pamr)
    for most_bytes in (1, MIB):
        for background, label in ((None, 0), (0.4, 1), (0.6, 0)):
            query = ClassQuery.of_rows(rows, background)
            labels = spread(segmenter, scores, pixels, (64, 64), query, most_bytes)
            if not pamr or background is not None:  # PAMR's sums of equal scores may round
                assert labels.unique().tolist() == [label]


@pytest.mark.parametrize("background", [None, 0.9])
@pytest.mark.parametrize("original", [(64, 96), (50, 131), (1, 1)])
@pytest.mark.parametrize("alike", [False, True])
def test_of_many_classes_those_are_left_out_that_are_the_best_nowhere(
    base, original, background, alike, monkeypatch
):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(len(PROTOCOL.corners(64, 96)), 40, 8, 8, generator=generator)
    if alike:  # all classes follow the same picture, and few are ever ahead
        scores = 0.9 * scores[:, :1] + torch.linspace(0, 0.05, 40)[:, None, None] + 0.05 * scores
    scores[:, 7] = scores[:, 3]  # a tie everywhere: the first one wins
    query, pixels = ClassQuery.of_rows(torch.eye(40), background), image(64, 96).float()
    by_rows = spread(base, scores, pixels, original, query)
    monkeypatch.setattr(scoring, "_MANY", 39)
    by_blocks = spread(base, scores, pixels, original, query)
    assert (by_blocks == by_rows).float().mean() >= 0.999
    assert not (by_blocks == 7 + (background is not None)).any()
    assert background is None or original == (1, 1) or (by_blocks == 0).any()


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_of_many_classes_one_with_scores_that_are_no_numbers_wins_as_of_few(
    base, value, monkeypatch
):
    scores = torch.rand(
        len(PROTOCOL.corners(64, 96)), 40, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    scores[:, 9] = value
    monkeypatch.setattr(scoring, "_MANY", 39)
    query, pixels = ClassQuery.of_rows(torch.eye(40)), image(64, 96).float()
    assert (spread(base, scores, pixels, (50, 131), query) == 9).all()


class LiveBytes(TorchDispatchMode):
    """The most bytes in tensors that were made under it and were alive at once."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage):
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or address in self._known:
            return
        self._known.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address, size):
        self._known.discard(address)
        self.live -= size


@pytest.mark.parametrize("pamr", [False, True])
def test_171_classes_stay_within_the_memory_that_is_set(base, pamr):
    """All of them at the original size alone would take 171 x 120 x 180 x 4 bytes = 14 MiB."""
    classes, size_hw, scored = 171, (120, 180), (64, 96)
    scores = torch.rand(
        len(PROTOCOL.corners(*scored)), classes, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    segmenter, pixels = base.variant(pamr=pamr), image(*scored).float()
    query = ClassQuery.of_rows(torch.eye(classes))
    unlimited = spread(segmenter, scores, pixels, size_hw, query, 1 << 40)
    peaks = []
    for budget in (MIB, 4 * MIB, 1 << 40):
        with LiveBytes() as memory:
            labels = spread(segmenter, scores, pixels, size_hw, query, budget)
        assert (labels == unlimited).float().mean() >= 0.999
        peaks.append(memory.peak)
        # Beside the scores: labels and best scores, scores spread along one axis, and of PAMR
        # its weights and two tables of up to 32 classes with 24 pixels around the window.
        aside = 40 * size_hw[0] * size_hw[1] + 4 * classes * 8 * (size_hw[1] + 16)
        if pamr:
            aside += 3 * 48 * 4 * PROTOCOL.window**2 + 2 * 32 * 4 * (PROTOCOL.window + 48) ** 2
        assert memory.peak <= budget + aside
    assert peaks[0] < peaks[1] < peaks[2]
    assert peaks[1] < 4 * classes * size_hw[0] * size_hw[1]


class Blinking(DenseSegmenter):
    """Sees colours, and finds the second class in every window but the first."""

    aligned_corners, device = False, CPU

    def __init__(self, **refine):
        super().__init__()
        self.refinements = RefinementOptions(**refine).refinements()

    def shares_features(self, other):
        return isinstance(other, Blinking)

    def patch_features(self, windows):
        colours = F.avg_pool2d(windows, 8).flatten(2).transpose(1, 2)
        first = windows.mean(dim=(1, 2, 3)) > 128  # the noise is centred, the first window brighter
        return PatchFeatures(first.float(), colours - 128, first, first)

    def patch_scores(self, features, query):
        side = round(features.patches.shape[1] ** 0.5)
        scores = torch.stack([features.cls, 0.9 - features.cls], dim=1)
        scores = scores[..., None].expand(-1, -1, side * side)
        for refinement in self.refinements:
            scores = refinement.patches(scores, features.patches, self.most_bytes)
        return scores.unflatten(-1, (side, side))


def seams(segmenter, pixels, layout_protocol):
    query = ClassQuery.of_rows(torch.eye(2))
    picture = Picture(pixels, tuple(pixels.shape[-2:]), [Task(segmenter, query)])
    batching = Batching(size=2, score_bytes=MIB)
    ((_, (labels,)),) = label_pictures([picture], layout_protocol, batching, torch.device("cpu"))
    scores = picture_scores(segmenter, pixels, query, layout_protocol, batch_size=2)
    assert torch.equal(labels, score_labels(scores))
    return int((labels[:, 1:] != labels[:, :-1]).sum())


def test_a_graph_of_the_whole_image_has_no_seams_between_windows():
    generator = torch.Generator().manual_seed(0)
    pixels = (128 + 40 * torch.randn(3, 64, 192, generator=generator)).clamp(0, 255)
    pixels[:, :, :64] += 128 - pixels[:, :, :64].mean() + 1
    for left in (64, 128):
        pixels[:, :, left : left + 64] += 127 - pixels[:, :, left : left + 64].mean()
    protocol = Protocol(short_side=None, window=64, stride=64)
    assert seams(Blinking(), pixels, protocol) == 64
    assert seams(Blinking(propagation=True), pixels, protocol) == 64
    whole = Blinking(propagation=True, propagation_graph="image")
    assert seams(whole, pixels, protocol) == 0
