"""Background cleaning, against the formulas of the paper written with loops."""

import torch

from talk2dino.methods.talk2dino.segmenter import clean_background


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
