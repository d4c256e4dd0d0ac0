"""Alignment strategies on numbers small enough to check by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from talk2dino.backbones.vision import average_attention, head_embeddings
from talk2dino.methods.talk2dino.alignment import PER_HEAD, align, selected_heads
from talk2dino.methods.talk2dino.losses import infonce, triplet
from talk2dino.methods.talk2dino.projection import ProjectionConfig, ProjectionLayer
from tests.literal.training import infonce as literal_infonce

TEXT = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
HEADS = torch.tensor([[[0.1, 0.9], [0.7, 0.2]], [[0.6, 0.5], [0.9, 0.4]]])  # (image, head, D)


def test_each_image_is_represented_by_the_head_closest_to_its_own_caption():
    assert selected_heads(HEADS, TEXT).tolist() == [1, 0]
    scores = align(HEADS, TEXT, "max_score")
    assert torch.allclose(scores, torch.tensor([[0.7, 0.6], [0.2, 0.5]]))


def test_sampling_draws_heads_by_their_softmax_and_repeats_with_its_generator():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return PER_HEAD["sampled_attn_map"](HEADS, TEXT * 100, generator)

    assert torch.equal(draw(0), draw(0))
    assert torch.equal(draw(1), torch.stack([HEADS[0, 1], HEADS[1, 0]]))  # softmax of 60 apart


def test_soft_routing_weighs_heads_by_their_own_caption_and_scores_their_unit_sum():
    config = {"alignment_strategy": "soft_routing", "routing_temperature": 0.2}
    model = ProjectionLayer.from_config({**config, "dino_embed_dim": 2, "clip_embed_dim": 3})
    text = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    projected = F.normalize(model.project_clip_txt(text), dim=1)
    expected = torch.empty(2, 2)
    for image in range(2):
        heads = F.normalize(HEADS[image], dim=1)
        weights = ((heads @ projected[image]) / 0.2).exp()
        routed = (weights[:, None] * heads).sum(dim=0)
        for caption in range(2):
            expected[caption, image] = projected[caption] @ routed / routed.norm()
    torch.testing.assert_close(model(HEADS, text), expected)
    default = ProjectionLayer.from_config({**config, "routing_temperature": 0.1})
    assert default.config == ProjectionConfig(alignment_strategy="soft_routing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"routing_temperature": 0.0}, "routing_temperature must be positive, got 0.0"),
        ({"cosine": False}, "soft_routing compares unit vectors"),
    ],
)
def test_soft_routing_needs_unit_vectors_and_a_temperature(change, message):
    with pytest.raises(ValueError, match=message):
        ProjectionConfig(**{"alignment_strategy": "soft_routing"} | change)


def test_weighted_average_is_the_mean_of_weight_times_head():
    weights = torch.tensor([0.1, 0.7]).softmax(0)
    expected = (weights[:, None] * HEADS[0]).sum(0) / 2
    assert torch.allclose(PER_HEAD["weighted_avg"](HEADS, TEXT)[0], expected)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("sum", 0.8), ("mean", 0.4), ("max-row_sum", 0.7), ("nucleus-sampling", 0.7)],
)
def test_pairwise_strategies_score_images_by_texts(strategy, expected):
    assert float(align(HEADS, TEXT, strategy)[0, 0]) == pytest.approx(expected)


def test_nucleus_keeps_the_shortest_prefix_whose_mass_exceeds_alpha():
    image = torch.tensor([[[1.0, 0.0]]])
    tokens = torch.tensor([[[0.5, 0.0], [0.1, 0.0], [0.3, 0.0], [0.2, 0.0]]])
    # sorted .5 .3 .2 .1; minus .1 over .7: .57 .29 .14 0
    assert float(align(image, tokens, "nucleus-sampling", alpha=0.5)) == pytest.approx(0.5)
    assert float(align(image, tokens, "nucleus-sampling", alpha=0.6)) == pytest.approx(0.8)
    assert float(align(image, tokens, "nucleus-sampling", alpha=0.9)) == pytest.approx(1.0)


def test_masked_tokens_do_not_count():
    tokens = torch.tensor([[[1.0, 0.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, False]])
    assert float(align(torch.ones(1, 2), tokens, "sum", token_mask=mask)) == 1.0


def test_one_vector_on_each_side_is_a_dot_product_whatever_the_strategy():
    visual = torch.tensor([[2.0, 3.0], [4.0, 5.0]])
    for strategy in ("max_score", "sum"):
        assert torch.equal(align(visual, TEXT, strategy), TEXT @ visual.T)


def test_token_level_text_needs_a_pairwise_strategy():
    with pytest.raises(
        ValueError, match="'max_score' needs one vector per caption.*Use one of: sum"
    ):
        align(HEADS, torch.ones(2, 3, 2), "max_score")


def test_an_unknown_strategy_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown alignment_strategy 'max'. Known: max_score"):
        align(HEADS, TEXT, "max")


def test_uniform_attention_gives_the_mean_patch_over_p():
    patches = torch.randn(2, 5, 4)
    mean = patches.mean(dim=1) / 5  # the published factor 1/P
    torch.testing.assert_close(head_embeddings(torch.zeros(2, 3, 5), patches)[:, 1], mean)
    torch.testing.assert_close(average_attention(torch.zeros(2, 3, 5), patches), mean)


def test_infonce_of_equal_scores_is_the_log_of_the_batch_over_its_square():
    scores = torch.zeros(4, 4)
    assert float(infonce(scores)) == pytest.approx(math.log(4) / 16)
    confident = infonce(torch.eye(2))
    expected = math.log1p(math.exp(-1 / 0.07)) / 4
    assert float(confident) == pytest.approx(expected, abs=1e-7)


def test_infonce_is_the_literal_one():
    random = torch.Generator().manual_seed(0)
    for scale in (1.0, 100.0):  # scores need not be cosines
        scores = torch.randn(5, 5, generator=random) * scale
        torch.testing.assert_close(infonce(scores), literal_infonce(scores))


def test_a_temperature_divides_the_scores():
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(infonce(scores, 0.14), infonce(scores / 2))


def test_triplet_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.0], [0.3, 0.5, 0.4], [0.0, 0.0, 1.0]])
    # margin .2: rows  0: .1 | 1: 0, .1 | 2: -   columns 0: - | 1: .5 | 2: -
    assert float(triplet(scores, 0.2, max_violation=False)) == pytest.approx((0.2 + 0.5) / 9)
    assert float(triplet(scores, 0.2, max_violation=True)) == pytest.approx((0.2 + 0.5) / 9)
    scores[0, 2] = 0.75
    assert float(triplet(scores, 0.2, max_violation=False)) == pytest.approx((0.25 + 0.5) / 9)
    assert float(triplet(scores, 0.2, max_violation=True)) == pytest.approx((0.2 + 0.5) / 9)
