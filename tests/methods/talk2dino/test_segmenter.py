"""Talk2DINO behind the segmenter seam, with the toy backbone and text encoder."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from talk2dino.backbones.templates import get_templates
from talk2dino.methods.talk2dino.config import SegmenterConfig
from talk2dino.methods.talk2dino.projection import ProjectionConfig, load_projection
from talk2dino.methods.talk2dino.segmenter import (
    Talk2DinoSegmenter,
    build_segmenter,
    clean_background,
    patch_cosines,
)
from talk2dino.refine.pamr import pamr
from talk2dino.segmenter import ClassQuery

CONFIG = SegmenterConfig(
    projection=ProjectionConfig(hidden_layer=True, dino_embed_dim=192, num_attn_head=3),
    projection_weights="seeded:0",
    vision_model="toy",
    text_model="toy",
    input_size=112,
)


@pytest.fixture(scope="module")
def models():
    built = build_segmenter(CONFIG)
    return built.vision, built.text, built.projection


def segmenter(models, projection=None, **changes):
    """A segmenter on the toy models; `projection` replaces fields of the projection's config."""
    vision, text, plain = models
    config = dataclasses.replace(CONFIG, **changes)
    if projection is None:
        return Talk2DinoSegmenter(vision, text, plain, config)
    settings = dataclasses.replace(CONFIG.projection, **projection)
    config = dataclasses.replace(config, projection=settings)
    return Talk2DinoSegmenter(vision, text, load_projection(settings, "seeded:0"), config)


def windows(batch=2, height=60, width=90):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator).float()


def test_classes_are_the_projected_mean_over_templates_of_unit_length(models):
    _, text, projection = models
    classes = segmenter(models, template="maskclip").embed_classes(["cat", "big dog"])
    prompts = [t.format("big dog") for t in get_templates("maskclip")]
    with torch.no_grad():
        expected = projection.project_clip_txt(text.encode(prompts).mean(dim=0))
    torch.testing.assert_close(classes[1], F.normalize(expected, dim=-1))
    torch.testing.assert_close(classes.norm(dim=1), torch.ones(2))
    assert not classes.requires_grad


def test_prompts_are_encoded_up_to_the_end_of_the_longest(models):
    method, lengths = segmenter(models, template="maskclip"), []
    noting = models[1].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape))
    classes = method.embed_classes(["cat", "big dog"])
    noting.remove()
    templates = get_templates("maskclip")
    tokens = torch.stack(
        [models[1].tokenize([t.format(name) for t in templates]) for name in ("cat", "big dog")]
    )
    torch.testing.assert_close(classes, method.embed_class_tokens(tokens))
    assert lengths == [(2 * len(templates), int(tokens.argmax(dim=-1).max()) + 1)]


def test_scores_are_sigmoids_of_cosines_spread_between_aligned_corners(models):
    method = segmenter(models)
    classes = method.embed_classes(["cat", "dog", "sky"])
    batch = windows(height=7 * 9 + 1, width=7 * 13 + 1)  # 8 x 8 patches, 9 and 13 pixels apart
    scores = method.window_scores(batch, ClassQuery.of_rows(classes))
    assert scores.shape == (2, 3, 64, 92) and not scores.requires_grad
    with torch.no_grad():
        cosines = patch_cosines(method.patch_features(batch).patches, classes)
    grid = cosines.sigmoid().unflatten(-1, (8, 8))
    torch.testing.assert_close(scores[..., ::9, ::13], grid)


@pytest.mark.parametrize("options", [{}, {"clean_background": True}, {"pamr": True}])
def test_a_batch_scores_as_its_windows_one_by_one(models, options):
    method = segmenter(models, **options)
    classes = method.embed_classes(["cat", "dog"])
    batch = windows()
    together = method.window_scores(batch, ClassQuery.of_rows(classes, 0.5))
    query = ClassQuery.of_rows(classes, 0.5)
    alone = torch.cat([method.window_scores(window[None], query) for window in batch])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_background_is_a_constant_first_channel(models):
    method = segmenter(models, pamr=True)
    classes = method.embed_classes(["cat"])
    scores = method.window_scores(windows(), ClassQuery.of_rows(classes, 0.52))
    assert scores.shape == (2, 2, 60, 90)
    assert scores[:, 0].unique().tolist() == pytest.approx([0.52])


def test_pamr_follows_the_window_itself(models):
    plain, refined = segmenter(models), segmenter(models, pamr=True)
    classes = plain.embed_classes(["cat", "dog"])
    batch = windows()
    expected = pamr(batch, plain.window_scores(batch, ClassQuery.of_rows(classes)))
    torch.testing.assert_close(refined.window_scores(batch, ClassQuery.of_rows(classes)), expected)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_is_close_and_returns_float32(models, precision):
    exact, method = segmenter(models), segmenter(models, precision=precision)
    batch = windows()
    features, expected = method.patch_features(batch), exact.patch_features(batch)
    for name in ("cls", "patches", "attention_logits", "penultimate_cls"):
        ours, theirs = getattr(features, name), getattr(expected, name)
        assert ours.dtype == torch.float32
        assert 0 < (ours - theirs).norm() <= 2e-2 * theirs.norm()
    assert not method.shares_features(exact)
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        segmenter(models, precision="half")


def test_cleaning_changes_the_scores(models):
    classes = segmenter(models).embed_classes(["cat", "dog"])
    plain = segmenter(models).window_scores(windows(), ClassQuery.of_rows(classes))
    cleaned = segmenter(models, clean_background=True).window_scores(
        windows(), ClassQuery.of_rows(classes)
    )
    assert not torch.allclose(plain, cleaned, atol=1e-3)


def test_red_reaches_the_backbone_as_red(models):
    seen = []
    vision = models[0]
    handle = vision.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        red = torch.zeros(1, 3, 50, 70)
        red[:, 0] = 255
        method = segmenter(models)
        method.window_scores(red, ClassQuery.of_rows(method.embed_classes(["cat"])))
    finally:
        handle.remove()
    pixels = (seen[0] * vision.std + vision.mean) * 255
    assert pixels.shape == (1, 3, 112, 112)
    torch.testing.assert_close(
        pixels[0].mean(dim=(1, 2)), torch.tensor([255.0, 0, 0]), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (112, 112)])
def test_windows_of_any_size_are_scored(models, size):
    method = segmenter(models, pamr=True, clean_background=True)
    scores = method.window_scores(
        windows(1, *size), ClassQuery.of_rows(method.embed_classes(["cat"]), 0.5)
    )
    assert scores.shape == (1, 2, *size) and scores.isfinite().all()


@pytest.mark.parametrize("model_class", ["VisualProjectionLayer", "DoubleMLP"])
def test_projections_of_the_image_side_are_applied_to_the_patches(models, model_class):
    method = segmenter(models, {"model_class": model_class})
    classes = method.embed_classes(["cat", "dog"])
    width = 512 if model_class == "VisualProjectionLayer" else 192
    assert classes.shape == (2, width)
    assert method.patch_features(windows()).patches.shape == (2, 64, width)
    assert method.window_scores(windows(), ClassQuery.of_rows(classes)).shape == (2, 2, 60, 90)


def test_a_trained_last_text_layer_projects_every_prompt(models):
    method = segmenter(models, {"model_class": "CLIPLastLayer"}, template="simple")
    method.projection.copy_from(models[1].model)  # CLIP's own last layer: the plain projection
    state = {
        k: v for k, v in method.projection.state_dict().items() if k.startswith(("lin", "hid"))
    }
    models[2].load_state_dict(state)
    expected = segmenter(models, template="simple").embed_classes(["cat", "polar bear"])
    torch.testing.assert_close(method.embed_classes(["cat", "polar bear"]), expected)


def test_averaged_tokens_leave_out_first_and_end_positions_unless_kept(models):
    text, projection = models[1], models[2]
    features = text(text.tokenize(["a photo of a cat."]), dense=True)
    end = int(features.end_positions[0])
    for keep_cls, keep_end in [(False, False), (True, False), (False, True)]:
        method = segmenter(
            models,
            template="simple",
            average_tokens=True,
            keep_cls=keep_cls,
            keep_end_seq=keep_end,
        )
        kept = features.tokens[0, 0 if keep_cls else 1 : end + keep_end]
        expected = F.normalize(projection.project_clip_txt(kept.mean(dim=0)), dim=-1)
        torch.testing.assert_close(method.embed_classes(["cat"])[0], expected.detach())


def test_models_that_do_not_fit_the_projection_are_refused(models):
    with pytest.raises(ValueError, match=r"vision model gives vectors of width 192.*expects 768"):
        segmenter(models, {"dino_embed_dim": 768})
    with pytest.raises(ValueError, match=r"text model gives vectors of width 512.*expects 768"):
        segmenter(models, {"clip_embed_dim": 768})
    with pytest.raises(ValueError, match="does not divide"):
        segmenter(models, input_size=100)


def test_impossible_input_is_refused(models):
    method = segmenter(models)
    with pytest.raises(ValueError, match="no class names"):
        method.embed_classes([])
    with pytest.raises(ValueError, match="an empty class name"):
        method.embed_classes(["cat", " "])
    with pytest.raises(ValueError, match=r"windows must be \(B, 3, h, w\), found \(3, 8, 8\)"):
        method.window_scores(torch.zeros(3, 8, 8), ClassQuery.of_rows(torch.zeros(1, 192)))


def test_braces_in_a_class_name_are_letters(models):
    assert segmenter(models).embed_classes(["{}", "{0} {x}"]).shape == (2, 192)


def inputs(batch=2, classes=3, heads=4, patches=6, width=5):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    embeddings = torch.nn.functional.normalize(draw(classes, width), dim=-1)
    features = draw(batch, patches, width)
    cosines = torch.nn.functional.normalize(features, dim=-1) @ embeddings.T
    return cosines.transpose(1, 2).sigmoid(), features, draw(batch, heads, patches), embeddings


def literal(mask, features, logits, embeddings, weight):
    """One window: mask (C, P), features (P, D), logits (H, P), embeddings (C, D)."""
    heads = [(logits[h, :, None] * features).mean(dim=0) for h in range(len(logits))]
    heads = [head / head.norm() for head in heads]
    rows = []
    for embedding in embeddings:
        shares = torch.stack([embedding @ head for head in heads]).softmax(dim=0)
        rows.append(sum(share * row for share, row in zip(shares, logits, strict=True)))
    attention = torch.stack(rows).softmax(dim=-1)
    attention = (attention - attention.min()) / attention.max()
    attention = attention * (mask.max() - mask.min()) + mask.min()
    return (mask + weight * attention) / (1 + weight)


def test_every_window_follows_the_formulas_on_its_own():
    masks, features, logits, embeddings = inputs()
    cleaned = clean_background(masks, features, logits, embeddings, weight=0.3)
    for b in range(2):
        expected = literal(masks[b], features[b], logits[b], embeddings, 0.3)
        torch.testing.assert_close(cleaned[b], expected)


def test_the_default_weight_is_the_published_one_and_zero_changes_nothing():
    arguments = inputs()
    default = clean_background(*arguments)
    torch.testing.assert_close(default, clean_background(*arguments, weight=0.2))
    torch.testing.assert_close(clean_background(*arguments, weight=0.0), arguments[0])


def test_the_input_is_not_modified():
    arguments = inputs()
    before = [value.clone() for value in arguments]
    clean_background(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


def test_no_class_gives_no_class():
    masks, features, logits, embeddings = inputs()
    assert clean_background(masks[:, :0], features, logits, embeddings[:0]).shape == (2, 0, 6)
