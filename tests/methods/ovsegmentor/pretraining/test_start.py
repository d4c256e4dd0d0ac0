"""What a run begins with."""

import pytest
import torch

from talk2dino.backbones.checkpoints import state_shapes
from talk2dino.methods.ovsegmentor.checkpoints import seeded_weights
from talk2dino.methods.ovsegmentor.config import LossConfig
from talk2dino.methods.ovsegmentor.pretraining import job
from talk2dino.methods.ovsegmentor.pretraining.job import first_model, with_words
from talk2dino.methods.ovsegmentor.text import load_tokenizer
from tests.methods.ovsegmentor.conftest import TOY


class Captions:
    """Rows with captions only."""

    def __init__(self, *captions):
        self.captions, self.usable = captions, torch.arange(len(captions))

    def caption(self, row):
        return self.captions[row]


def dino_weights(model):
    """A toy DINO: the names of a plain ViT, every tensor filled with its own number."""
    names = {}
    for name in state_shapes(model.img_encoder):
        if "downsample" in name or "group_token" in name:
            continue
        parts = name.split(".")
        if parts[0] == "layers":
            name = ".".join(["blocks", str(2 * int(parts[1]) + int(parts[3])), *parts[4:]])
        names[name] = None
    shapes = dict(zip(names, _shapes(model), strict=True))
    weights = {name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(shapes.items())}
    weights["pos_embed"] = torch.ones(1, 1 + TOY.vision.grid**2, TOY.vision.width)
    weights["cls_token"] = torch.zeros(1, 1, TOY.vision.width)
    return weights


def _shapes(model):
    items = state_shapes(model.img_encoder).items()
    return [shape for name, shape in items if "downsample" not in name and "token" not in name]


def test_stage_1_starts_from_dino(make_recipe, tmp_path):
    recipe = make_recipe()
    weights = dino_weights(first_model(recipe))
    torch.save(weights, tmp_path / "dino.pth")
    model = first_model(make_recipe(start={"dino": str(tmp_path / "dino.pth")}))
    encoder = model.img_encoder
    assert torch.equal(encoder.layers[1].blocks[0].norm1.weight, weights["blocks.2.norm1.weight"])
    assert encoder.pos_embed.eq(1).all()
    assert model.training


def test_a_dino_of_transformers_is_refused_with_the_file_that_is_needed(make_recipe, tmp_path):
    names = ("encoder.layer.0.norm1.weight", "embeddings.patch_embeddings.projection.weight")
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "dino.pth")
    with pytest.raises(ValueError, match=r"transformers library.*Needed is DINO's own dino_"):
        first_model(make_recipe(start={"dino": str(tmp_path / "dino.pth")}))


def test_stage_2_starts_from_a_published_file_with_a_teacher_like_its_student(make_recipe, publish):
    state = seeded_weights(TOY, 0, "stage1")
    model = first_model(make_recipe(2, start={"stage1": str(publish(state))}))
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    for name, value in model.img_encoder.state_dict().items():
        assert torch.equal(found[f"img_encoder_momentum.{name}"], value)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_model_computes_the_losses_that_the_recipe_describes(make_recipe, publish, stage):
    values = {"entity": 0.7, "mask": 0.3, "threshold": 0.8, "group_ratio": 0.25}
    first = {"stage1": str(publish(seeded_weights(TOY, 0, "stage1")))} if stage == 2 else {}
    model = first_model(make_recipe(stage, losses=values, start=first))
    assert (model.losses, model.mask_batch) == (LossConfig(**values), 128)


def test_first_weights_depend_on_the_seed_alone(make_recipe):
    state = torch.get_rng_state()
    models = [first_model(make_recipe(train={"seed": seed})) for seed in (0, 0, 1)]
    one, again, other = (m.state_dict()["img_encoder.layers.0.group_token"] for m in models)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_frozen_text_encoder_has_a_trained_projector(make_recipe):
    model = first_model(make_recipe(train={"freeze_text": True}))
    assert not any(p.requires_grad for p in model.text_encoder.transformer.parameters())
    assert all(p.requires_grad for p in model.text_projector.parameters())


def test_the_toy_tokeniser_learns_the_commonest_words(make_recipe):
    tokenizer = load_tokenizer(TOY.text)
    captions = Captions(
        "A cat's hat.",
        "a frog",
        "a frog",
        *(f"{n:b}".replace("0", "x").replace("1", "y") for n in range(300)),
    )
    learned = with_words(tokenizer, TOY, captions)
    assert len(learned.tokenizer) == TOY.text.vocabulary
    assert learned.tokenizer.tokenize("a frog") == ["a", "frog"]
    assert learned.positions == TOY.text.positions


def test_dino_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch):
    def fails(*_, **__):
        raise OSError("no network\nand more")

    monkeypatch.setattr("timm.create_model", fails)
    with pytest.raises(
        RuntimeError, match=r"vit_base_patch16_224.dino \(no network\). Give a local"
    ):
        job._dino("pretrained", 768)
