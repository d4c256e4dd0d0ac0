"""Which epoch's weights a run leaves behind."""

import torch
from safetensors.torch import load_file

from talk2dino.methods.ovsegmentor.pretraining.job import PretrainingJob, pretrain
from talk2dino.methods.ovsegmentor.pretraining.run import HeldOut
from talk2dino.training.run import weights_on_cpu

from .conftest import write_captions


def test_the_weights_of_the_best_epoch_are_written_when_the_last_is_worse(
    make_recipe, tmp_path, monkeypatch
):
    epochs = []

    def loss(self, model):
        epochs.append(weights_on_cpu(model))  # the first ones are those of before the first step
        return float(len(epochs))

    monkeypatch.setattr(HeldOut, "loss", loss)
    captions = write_captions(tmp_path / "data", 4)
    files = {"metafile": str(captions), "images": str(captions.parent)}
    recipe = make_recipe(data=files, selection=files)
    result = pretrain(PretrainingJob(recipe, tmp_path / "out", "cpu"))
    assert (result.best_epoch, len(epochs)) == (1, 3)
    _, first, last = epochs
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() <= first.keys()
    assert all(torch.equal(value, first[name]) for name, value in written.items())
    assert not torch.equal(written["img_encoder.pos_embed"], last["img_encoder.pos_embed"])
