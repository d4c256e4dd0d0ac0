"""Imported by fork servers, last: toys are drawn there, once for all processes that they start."""

import torch

from talk2dino import Talk2DINO
from talk2dino.methods.ovsegmentor.checkpoints import seeded_weights
from talk2dino.methods.ovsegmentor.config import get_preset
from tests.seeds import drawn_once

torch.set_num_threads(1)  # a process that has started more cannot be forked
kept = drawn_once()
kept.__enter__()
Talk2DINO.from_pretrained("toy", device="cpu")
seeded_weights(get_preset("ovsegmentor_toy"), 0, "stage1")
