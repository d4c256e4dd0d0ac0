"""Mask refinement: against the literal version, by hand, and with impossible input."""

import sys
from types import SimpleNamespace

import pytest
import torch

from talk2dino.refine.pamr import (
    _fastest,
    _pamr_in_bands,
    affinities,
    pamr,
    plain_pamr,
)
from tests.literal.pamr import pamr as literal_pamr


def inputs(batch=1, classes=3, height=20, width=27, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, height, width), generator=generator)
    masks = torch.rand(batch, classes, height, width, generator=generator, dtype=dtype)
    return images.to(dtype), masks


@pytest.mark.parametrize("size", [(60, 61), (20, 27), (5, 3), (1, 7), (1, 1)])
def test_it_equals_the_literal_version_at_odd_and_tiny_sizes(size):
    images, masks = inputs(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(pamr(images, masks), literal_pamr(images, masks))


def test_it_equals_the_literal_version_with_other_settings():
    images, masks = inputs()
    ours = pamr(images, masks, iterations=3, dilations=[1, 5])
    torch.testing.assert_close(ours, literal_pamr(images, masks, 3, (1, 5)))


ENOUGH = "talk2dino.refine.pamr._ENOUGH_CLASSES"
in_both_layouts = pytest.mark.parametrize("enough_classes", [1, 99])


@in_both_layouts
@pytest.mark.parametrize("refine", [plain_pamr, _pamr_in_bands])
@pytest.mark.parametrize(
    ("batch", "classes", "size", "dilations"),
    [
        (2, 7, (60, 61), (1, 2, 4, 8, 12, 24)),
        (1, 32, (5, 3), (1, 24)),  # neighbours beyond the image
        (1, 75, (1, 7), (3, 1)),  # classes in three parts, the last one not full
        (3, 6, (1, 1), (1, 2)),
    ],
)
def test_every_way_on_a_cpu_equals_the_literal_version(
    monkeypatch, enough_classes, refine, batch, classes, size, dilations
):
    monkeypatch.setattr(ENOUGH, enough_classes)
    images, masks = inputs(batch, classes, *size)
    exact = literal_pamr(images.double(), masks.double(), 4, dilations)
    before = masks.clone()
    refined = refine(images, masks, 4, dilations)
    torch.testing.assert_close(refined.double(), exact, rtol=0, atol=2e-6)
    assert torch.equal(masks, before)


@in_both_layouts
@pytest.mark.parametrize(
    ("classes", "size", "iterations"),
    [
        (1, (23, 9), 3),  # the last band has fewer rows than a neighbour is away
        (6, (23, 9), 7),  # more iterations than bands
        (2, (70, 11), 2),
        (33, (48, 5), 3),
        (70, (13, 6), 4),  # as many bands as are kept, and three parts of classes
        (1, (1, 30), 1),
    ],
)
def test_pictures_of_several_bands_are_refined_like_whole_ones(
    monkeypatch, enough_classes, classes, size, iterations
):
    monkeypatch.setattr(ENOUGH, enough_classes)
    images, masks = inputs(2, classes, *size)
    exact = literal_pamr(images.double(), masks.double(), iterations, (1, 4))
    whole = _pamr_in_bands(images, masks, iterations, (1, 4))
    for name in ("_BAND_PIXELS", "_BAG_BAND_PIXELS"):
        monkeypatch.setattr(f"talk2dino.refine.pamr.{name}", 5 * size[1])
    part = 2 * size[1] // torch.get_num_threads()
    monkeypatch.setattr("talk2dino.refine.pamr._PART_PIXELS", part)  # of two rows or one
    monkeypatch.setattr("talk2dino.refine.pamr._BAG_PIXELS", size[1])
    banded = _pamr_in_bands(images, masks, iterations, (1, 4))
    torch.testing.assert_close(banded, whole, rtol=0, atol=2e-6)
    torch.testing.assert_close(banded.double(), exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("classes", [3, 8])
def test_the_default_type_of_the_caller_changes_nothing(classes):
    images, masks = inputs(classes=classes)
    expected = pamr(images, masks)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(pamr(images, masks), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_scores_with_channels_last_give_the_same_result():
    images, masks = inputs(2, 9)
    other = masks.to(memory_format=torch.channels_last)
    refined = pamr(images, other)
    assert torch.equal(refined, pamr(images, masks)) and refined.is_contiguous()


def test_the_way_depends_on_type_and_gradients():
    _, masks = inputs(classes=6)
    assert _fastest(masks) is _pamr_in_bands
    assert _fastest(masks.double()) is plain_pamr
    assert _fastest(masks.requires_grad_()) is plain_pamr
    with torch.no_grad():
        assert _fastest(masks) is _pamr_in_bands


@pytest.mark.parametrize(("fits", "works"), [(True, True), (True, False), (False, True)])
def test_on_cuda_kernels_run_only_if_they_can(monkeypatch, fits, works):
    kernels = SimpleNamespace(
        fits=lambda masks: fits, works=lambda device: works, pamr_in_kernels=object()
    )
    monkeypatch.setattr("talk2dino.refine.pamr.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "talk2dino.refine.pamr_triton", kernels)
    expected = kernels.pamr_in_kernels if fits and works else plain_pamr
    assert _fastest(on_cuda()) is expected


def test_on_cuda_without_triton_the_plain_way_is_taken(monkeypatch):
    monkeypatch.setattr("talk2dino.refine.pamr.find_spec", lambda name: None)
    assert _fastest(on_cuda()) is plain_pamr


def on_cuda():
    """What is asked of scores before they are refined, of scores on a GPU."""
    return SimpleNamespace(
        device=torch.device("cuda"), dtype=torch.float32, requires_grad=False, shape=(1, 9, 4, 4)
    )


def test_a_flat_image_spreads_scores_evenly():
    images = torch.full((1, 3, 3, 3), 90.0)
    masks = torch.zeros(1, 1, 3, 3)
    masks[0, 0, 1, 1] = 8.0
    refined = pamr(images, masks, iterations=1, dilations=(1,))
    expected = torch.ones(3, 3)
    expected[1, 1] = 0.0
    torch.testing.assert_close(refined[0, 0], expected)


def test_nearly_flat_images_keep_their_precision():
    images, masks = inputs(dtype=torch.float64)
    images = (250 + images / 255 * 1e-2).float()
    exact = literal_pamr(images.double(), masks)
    torch.testing.assert_close(pamr(images, masks.float()).double(), exact, rtol=0, atol=1e-5)


def test_scores_do_not_cross_a_sharp_edge():
    images = torch.zeros(1, 3, 16, 16)
    images[..., 8:] = 255.0
    masks = torch.zeros(1, 1, 16, 16)
    masks[..., 8:] = 1.0
    refined = pamr(images, masks, dilations=(1, 2))
    assert refined[..., :8].max() < 0.01 and refined[..., 8:].min() > 0.99


def test_weights_sum_to_one_over_the_neighbours():
    images, _ = inputs()
    weights = affinities(images, (1, 2, 4))
    assert weights.shape == (1, 24, 20, 27)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(1, 20, 27))


def test_windows_and_classes_do_not_interact():
    images, masks = inputs(batch=2)
    both = pamr(images, masks)
    torch.testing.assert_close(both[1:, :1], pamr(images[1:], masks[1:, :1]))


def test_inputs_are_not_modified_and_no_iteration_copies():
    images, masks = inputs()
    before = images.clone(), masks.clone()
    pamr(images, masks)
    assert torch.equal(images, before[0]) and torch.equal(masks, before[1])
    unchanged = pamr(images, masks, iterations=0)
    assert torch.equal(unchanged, masks) and unchanged.data_ptr() != masks.data_ptr()


@pytest.mark.parametrize("classes", [3, 8])
def test_gradients_reach_the_masks(classes):
    images, masks = inputs(classes=classes)
    pamr(images, masks.requires_grad_(), iterations=2).sum().backward()
    # every weight sums to one, so all that is spread arrives
    torch.testing.assert_close(masks.grad.sum(), torch.tensor(float(masks.numel())))


def test_integer_images_and_half_precision_masks_are_accepted():
    images, masks = inputs()
    expected = pamr(images, masks)
    assert torch.equal(pamr(images.to(torch.uint8), masks), expected)
    half = pamr(images, masks.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=2e-3)


def test_no_class_at_all_is_a_result_without_classes():
    images, masks = inputs()
    assert pamr(images, masks[:, :0]).shape == (1, 0, 20, 27)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(3, 8, 8)}, r"images must be \(B, 3, H, W\), found \(3, 8, 8\)"),
        ({"images": torch.zeros(1, 1, 8, 8)}, r"images must be \(B, 3, H, W\)"),
        ({"masks": torch.zeros(8, 8)}, r"masks must be \(B, C, H, W\)"),
        ({"masks": torch.zeros(1, 2, 4, 4)}, "agree in batch and size.*Resize the masks"),
        ({"masks": torch.zeros(2, 2, 8, 8)}, "agree in batch and size"),
        ({"masks": torch.zeros(1, 2, 8, 8).long()}, "floating point scores, found torch.int64"),
        ({"iterations": -1}, "iterations must not be negative, found -1"),
        ({"dilations": ()}, "dilations must be positive"),
        ({"dilations": (1, 0)}, r"dilations must be positive distances, found \(1, 0\)"),
        ({"masks": torch.zeros(1, 2, 8, 8, device="meta")}, "on cpu, masks on meta"),
    ],
)
def test_impossible_input_is_refused(change, message):
    arguments = {"images": torch.zeros(1, 3, 8, 8), "masks": torch.zeros(1, 2, 8, 8)} | change
    with pytest.raises(ValueError, match=message):
        pamr(**arguments)


def test_an_empty_image_is_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        pamr(torch.zeros(1, 3, 0, 8), torch.zeros(1, 2, 0, 8))
