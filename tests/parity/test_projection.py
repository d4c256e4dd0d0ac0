"""Scores, losses and gradient norms of every alignment strategy agree with the recorded ones."""

import pytest
import torch

from talk2dino.methods.talk2dino.losses import infonce, triplet
from talk2dino.methods.talk2dino.projection import ProjectionConfig, load_projection

from .conftest import GRADIENT_TOLERANCE, TENSOR_TOLERANCE

PAIRWISE = ("sum", "mean", "max-row_sum", "nucleus-sampling")


@pytest.fixture(scope="module")
def expected(recorded):
    return recorded("core/projection.npz")


def seeded_model(**settings):
    settings = {"dino_embed_dim": 768, "hidden_layer": True, "act": "tanh", **settings}
    return load_projection(ProjectionConfig(**settings), "seeded:0")


def inputs(expected, *names):
    return [torch.from_numpy(expected[name]) for name in names]


def assert_agrees(model, scores, loss, expected, key, relative_error):
    assert relative_error(scores, expected[f"{key}/scores"]) <= TENSOR_TOLERANCE
    if loss is None:
        return
    value = loss(scores)
    value.backward()
    assert relative_error(value, expected[f"{key}/loss"]) <= TENSOR_TOLERANCE
    parameters = dict(model.named_parameters())
    for name, norm in zip(
        expected[f"{key}/grad_names"], expected[f"{key}/grad_norms"], strict=True
    ):
        ours = float(parameters[str(name)].grad.norm())
        assert ours == pytest.approx(float(norm), rel=GRADIENT_TOLERANCE), name


@pytest.mark.parametrize("loss", [infonce, triplet])
@pytest.mark.parametrize("strategy", ["max_score", "weighted_avg"])
def test_strategies_that_pick_heads(strategy, loss, expected, relative_error):
    visual, text = inputs(expected, "disentangled", "text")
    model = seeded_model(alignment_strategy=strategy)
    key = strategy if loss is infonce else f"{strategy}_triplet"
    assert_agrees(model, model(visual, text), loss, expected, key, relative_error)


@pytest.mark.parametrize("strategy", PAIRWISE)
def test_pairwise_strategies_on_heads(strategy, expected, relative_error):
    visual, text = inputs(expected, "disentangled", "text")
    model = seeded_model(alignment_strategy=strategy)
    key = f"heads_{strategy}"
    assert_agrees(model, model(visual, text), infonce, expected, key, relative_error)


@pytest.mark.parametrize("strategy", PAIRWISE)
def test_pairwise_strategies_on_tokens(strategy, expected, relative_error):
    visual, tokens, mask = inputs(expected, "disentangled", "text_tokens", "text_mask")
    model = seeded_model(alignment_strategy=strategy)
    scores = model(visual, tokens, text_input_mask=mask)
    assert_agrees(model, scores, None, expected, f"tokens_{strategy}", relative_error)


@pytest.mark.parametrize("loss", [infonce, triplet])
def test_one_vector_per_image(loss, expected, relative_error):
    visual, text = inputs(expected, "avg", "text")
    model = seeded_model()
    key = "avg" if loss is infonce else "avg_triplet"
    assert_agrees(model, model(visual, text), loss, expected, key, relative_error)


@pytest.mark.parametrize("weighting", ["static", "conditioned"])
def test_learned_head_weights(weighting, expected, relative_error):
    patches, text, maps, cls = inputs(expected, "patches", "text", "attn_maps", "cls")
    model = seeded_model(weight_attn_heads=weighting)
    scores = model(patches, text, self_attn_maps=maps, cls=cls)
    key = f"weight_heads_{weighting}"
    assert_agrees(model, scores, infonce, expected, key, relative_error)


@pytest.mark.parametrize(
    ("model_class", "key"),
    [("VisualProjectionLayer", "visual_projection"), ("DoubleMLP", "double_mlp")],
)
def test_other_model_classes(model_class, key, expected, relative_error):
    visual, text = inputs(expected, "avg", "text")
    model = seeded_model(model_class=model_class)
    assert_agrees(model, model(visual, text), None, expected, key, relative_error)


# The two-layer recording was made with ReLU, the others with tanh.
@pytest.mark.parametrize(("layers", "act"), [(0, "tanh"), (1, "tanh"), (2, "relu")])
def test_projected_text_by_number_of_hidden_layers(layers, act, expected, relative_error):
    (text,) = inputs(expected, "text")
    projected = seeded_model(hidden_layer=layers, act=act).project_clip_txt(text)
    recorded = expected[f"project_text_hidden{layers}"]
    assert relative_error(projected, recorded) <= TENSOR_TOLERANCE


@pytest.mark.parametrize("name", ["vitb_mlp_infonce", "dinov3_vitb_mlp_infonce"])
def test_published_weights_load_strictly_and_agree(
    name, recorded, shared_file, relative_error, root
):
    weights = shared_file(f"published_weights/{name}.pth")
    sample = recorded(f"core/published_{name}.npz")
    model = load_projection(root / "configs" / f"{name}.yaml", weights)
    projected = model.project_clip_txt(torch.from_numpy(sample["text"]))
    assert relative_error(projected, sample["projected"]) <= TENSOR_TOLERANCE
