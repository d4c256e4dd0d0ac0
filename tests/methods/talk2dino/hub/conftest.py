"""Small models in the layouts that published files have."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from talk2dino import Talk2DINO
from talk2dino.backbones.checkpoints import state_shapes
from talk2dino.backbones.seeded import seeded_state
from talk2dino.backbones.text import create_text_tower
from talk2dino.backbones.vision import create_toy, official_shapes
from talk2dino.methods.talk2dino.projection import ProjectionConfig, build_projection


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def projection_state(width, hidden="hidden_layers.0"):
    shapes = state_shapes(
        build_projection(ProjectionConfig(hidden_layer=True, dino_embed_dim=width))
    )
    state = seeded_state(0, shapes)
    return {name.replace("hidden_layers.0", hidden): value for name, value in state.items()}


def published_layout(vision, text, width):
    """A file as the authors' repositories hold it: every part, CLIP in fp16, unused tensors."""
    clip = {name: value.half() for name, value in text.items()}
    clip["visual.conv1.weight"] = torch.zeros(4, 3, 16, 16, dtype=torch.float16)
    clip["logit_scale"] = torch.tensor(4.6)
    return {
        **prefixed("model.", vision),
        **prefixed("clip_model.", clip),
        **prefixed("proj.", projection_state(width)),
        "pamr.aff_x.kernel": torch.zeros(8, 1, 3, 3),
        "logit_scale": torch.tensor(0.07),
    }


def save(state, path):
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


@pytest.fixture(scope="session")
def toy():
    """The toy model of the package."""
    return Talk2DINO.from_pretrained("toy", device="cpu")


@pytest.fixture(scope="session")
def toy_text():
    return seeded_state(0, state_shapes(create_text_tower("toy")))


@pytest.fixture(scope="session")
def toy_state(toy_text):
    """The toy model's tensors as DINOv2's hub, OpenAI and the authors name theirs."""
    vision = seeded_state(0, official_shapes(create_toy()))
    return published_layout(vision, toy_text, 192)


@pytest.fixture(scope="session")
def toy_folder(toy_state, tmp_path_factory) -> Path:
    """What a download of the authors' repository leaves, for the toy model."""
    folder = tmp_path_factory.mktemp("published")
    save(toy_state, folder / "model.safetensors")
    (folder / "config.json").write_text(
        '{"model_type": "talk2dino", "auto_map": {"AutoModel": "modeling_talk2dino.Talk2DINO"}}'
    )
    return folder
