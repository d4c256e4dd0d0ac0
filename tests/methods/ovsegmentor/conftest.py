"""A toy OVSegmentor, and checkpoints in the layout of the published ones."""

import sys
import types
from collections import defaultdict
from typing import Any

import pytest
import torch

from talk2dino.methods.ovsegmentor.checkpoints import seeded_weights, write_model
from talk2dino.methods.ovsegmentor.config import get_preset
from talk2dino.methods.ovsegmentor.model import OVSegmentor, PretrainingBatch
from talk2dino.methods.ovsegmentor.text import Tokenizer, Tokens, toy_tokenizer
from talk2dino.methods.registry import find_method

TOY = get_preset("ovsegmentor_toy")


def seeded_toy(stage: str = "evaluation", **options) -> OVSegmentor:
    model = OVSegmentor(TOY, stage, **options)
    model.load_state_dict(seeded_weights(TOY, 0, stage))
    return model.eval()


def load_toy(weights="seeded:0"):
    return find_method("ovsegmentor_toy", {"weights": str(weights)}).load(torch.device("cpu"))


def save(model, folder, tokenizer=None):
    folder.mkdir()
    write_model(model.config, model.state_dict(), folder, "a test", tokenizer)


def published_state(stage="stage2"):
    """As a published file has it: a buffer of older libraries, a (1, P, C) position embedding."""
    state = seeded_weights(TOY, 0, stage)
    state["text_encoder.transformer.embeddings.position_ids"] = torch.arange(96)[None]
    state["img_encoder.pos_embed"] = state["img_encoder.pos_embed"][None]
    return state


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(toy_tokenizer(), TOY.text.positions)


@pytest.fixture
def toy() -> OVSegmentor:
    return seeded_toy()


def make_batch(tokenizer: Tokenizer, size: int = 4) -> PretrainingBatch:
    """Random images, and captions that differ."""
    generator = torch.Generator().manual_seed(0)
    nouns = ["cat", "dog", "bus", "boat", "tree", "sheep", "kite", "cup"][:size]
    return PretrainingBatch(
        images=torch.randn(size, 3, 224, 224, generator=generator),
        captions=tokenizer([f"a {noun} in the park" for noun in nouns], 32),
        questions=tokenizer([f"a [MASK] in the park no {i}" for i in range(size)], 32),
        answers=tokenizer([f"a photo of a {noun}" for noun in nouns], 32),
        paired_images=torch.randn(size, 3, 224, 224, generator=generator),
        paired_entities=tokenizer([f"A photo of {noun}" for noun in nouns], 32),
    )


def rows(batch: PretrainingBatch, part: slice) -> PretrainingBatch:
    """Some of a batch's samples."""
    parts = (
        Tokens(*(tensor[part] for tensor in value)) if isinstance(value, Tokens) else value[part]
        for value in batch
    )
    return PretrainingBatch(*parts)


class _Node:
    """An object of a foreign library: a class of another module, with state."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)


@pytest.fixture
def configuration(monkeypatch) -> Any:
    """What a published file pickles beside its tensors: OmegaConf's objects, by their names."""
    made = {}
    for full_name in (
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        "omegaconf.nodes.AnyNode",
    ):
        module_name, _, name = full_name.rpartition(".")
        module = sys.modules.get(module_name) or types.ModuleType(module_name)
        made[name] = type(name, (_Node,), {"__module__": module_name})
        setattr(module, name, made[name])
        monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        monkeypatch.setitem(sys.modules, module_name, module)
    metadata = made["ContainerMetadata"](
        ref_type=Any,
        object_type=dict,
        element_type=int,
        resolver_cache=defaultdict(dict, {"now": {"": 3}}),
    )
    depth = made["AnyNode"](_val=6, _metadata=made["Metadata"](object_type=list))
    depths = made["ListConfig"](_metadata=metadata, _content=[depth, depth])
    return made["DictConfig"](_metadata=metadata, _content={"depths": depths})


@pytest.fixture
def publish(tmp_path, configuration):
    """Write a state dict as the published training does; returns the file's path."""

    def write(state, name="best_miou.pth", **more):
        content = {
            "model": state,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
            "lr_scheduler": {"t_initial": 10},
            "metrics": {"max_accuracy": 0.0, "max_miou": 53.8},
            "epoch": 9,
            "config": configuration,
            **more,
        }
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write
