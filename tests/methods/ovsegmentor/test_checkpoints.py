"""Published files are read without running them; what is loaded is complete or refused."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from talk2dino.backbones.checkpoints import read_state_dict
from talk2dino.methods.ovsegmentor.checkpoints import (
    check_source,
    convert_checkpoint,
    identify,
    load_stage1,
    load_state,
    read_checkpoint,
    seeded_weights,
    stage_of,
)
from talk2dino.methods.ovsegmentor.config import get_preset
from talk2dino.methods.ovsegmentor.model import OVSegmentor
from tests.methods.ovsegmentor.conftest import TOY, load_toy, published_state, save, seeded_toy


class Attack:
    """Pickles as a call that would leave a folder behind."""

    def __init__(self, path, through_eval=False):
        self.path = path
        self.through_eval = through_eval

    def __reduce__(self):
        if self.through_eval:
            return eval, (f"__import__('os').mkdir({str(self.path)!r})",)
        return os.mkdir, (str(self.path),)


def test_a_published_file_converts_and_loads(tmp_path, publish, tokenizer):
    path = publish(published_state())
    checkpoint, unexpected = convert_checkpoint(path, tmp_path / "out")
    assert (checkpoint.config.name, stage_of(checkpoint.state)) == ("ovsegmentor_toy", "stage2")
    assert not unexpected
    assert json.loads((tmp_path / "out" / "config.json").read_text())["source"] == "best_miou.pth"
    converted = read_checkpoint(tmp_path / "out", "ovsegmentor_toy")
    assert converted.config == TOY
    model, direct = (load_toy(p).model for p in (tmp_path / "out", path))
    texts = tokenizer(["a cat"])
    images = torch.rand(1, 3, 64, 80)
    for other in (direct, seeded_toy()):
        ours, theirs = (m.eval().encode_images(images).groups for m in (model, other))
        torch.testing.assert_close(ours, theirs)
        ours, theirs = (m.encode_texts(texts).embedding for m in (model, other))
        torch.testing.assert_close(ours, theirs)


def test_numbers_of_numpy_in_the_metrics_do_no_harm(publish):
    path = publish({"a": torch.ones(2)}, max_miou=np.float64(53.8), accuracy=np.float32(1))
    assert read_state_dict(path)["a"].tolist() == [1, 1]


def test_a_configuration_of_the_real_library_is_read():
    path = Path(__file__).parent / "omegaconf_2_1.pth"  # saved with OmegaConf 2.1 installed
    assert read_state_dict(path)["a"].tolist() == [1]


@pytest.mark.parametrize("place", ["config", "model"])
@pytest.mark.parametrize("through_eval", [False, True])
def test_a_tampered_file_is_refused_and_nothing_runs(tmp_path, publish, place, through_eval):
    attack = Attack(tmp_path / "made", through_eval)
    if place == "config":
        path = publish(published_state("evaluation"), config=attack)
    else:
        path = publish({"a": attack})
    with pytest.raises(ValueError, match="holds pickled code, not only tensors, and is not loaded"):
        convert_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "made").exists() and not (tmp_path / "out").exists()


def test_the_reader_leaves_torchs_list_of_safe_names_as_it_was(publish):
    before = set(torch.serialization.get_safe_globals())
    read_state_dict(publish({"a": torch.ones(1)}))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state": {"a": torch.ones(1)}}, "holds no tensors. Its keys: state"),
        ({"model": {}}, "holds no tensors. Its keys: model"),
        ({"model": {"a": 3}}, "holds no tensors. Its keys: model"),
        ([1], "holds no state dict, but a list"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / "a.pth")


def test_a_damaged_file_is_named(publish):
    path = publish(published_state("evaluation"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="best_miou.pth is damaged"):
        read_checkpoint(path)


def test_a_missing_tensor_is_named(publish, tmp_path):
    state = published_state("evaluation")
    del state["text_projector.linear_out.weight"]
    with pytest.raises(ValueError, match="missing keys: text_projector.linear_out.weight"):
        load_toy(publish(state))
    with pytest.raises(ValueError, match="no complete ovsegmentor_toy: missing keys: text_proj"):
        convert_checkpoint(publish(state), tmp_path / "out")


def test_unexpected_tensors_are_reported_but_no_obstacle(publish, tmp_path, caplog):
    state = published_state("evaluation") | {"head.weight": torch.ones(2)}
    with caplog.at_level(logging.WARNING):
        load_toy(publish(state))
    assert caplog.messages[0].endswith("unexpected keys: head.weight")
    _, unexpected = convert_checkpoint(publish(state), tmp_path / "out")
    assert unexpected == ["head.weight"]


def test_a_checkpoint_of_another_size_says_so(publish):
    path = publish(published_state("evaluation"))
    with pytest.raises(ValueError, match=r"holds ovsegmentor_toy, but ovsegmentor_vitb was asked"):
        read_checkpoint(path, "ovsegmentor_vitb")
    state = published_state("evaluation")
    state["img_encoder.patch_embed.proj.weight"] = torch.ones(100, 3, 16, 16)
    with pytest.raises(ValueError, match="width 100 .* no known OVSegmentor has. Known: ovsegm"):
        identify(state, path)
    with pytest.raises(ValueError, match="is no OVSegmentor checkpoint: it lacks img_encoder"):
        identify({"cls_token": torch.ones(1)}, path)


def test_another_number_of_groups_is_taken_over():
    state = published_state("evaluation")
    state["img_encoder.layers.0.downsample.mlp_inter.fc2.weight"] = torch.ones(16, 32)
    assert identify(state, "a.pth").vision.num_groups == 16


def test_folders_without_weights_say_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no OVSegmentor weights there. Give a folder"):
        check_source(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="it lacks model.safetensors"):
        read_checkpoint(tmp_path)
    check_source("seeded:0")


def test_an_unfinished_pretraining_is_called_one(tmp_path):
    (tmp_path / "unfinished.pth").touch()
    with pytest.raises(
        FileNotFoundError, match=r"is not finished. Go on with `pretrain .*--resume"
    ):
        check_source(tmp_path)


def test_a_damaged_configuration_is_named(tmp_path, toy):
    save(toy, tmp_path / "toy")
    for content, message in (("{", "is not JSON"), ("[]", "no section 'model'")):
        (tmp_path / "toy" / "config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path / "toy")


def test_a_saved_model_brings_its_tokeniser(tmp_path, toy, tokenizer):
    save(toy, tmp_path / "toy", tokenizer.tokenizer)
    checkpoint = read_checkpoint(tmp_path / "toy")
    assert checkpoint.tokenizer == tmp_path / "toy" / "tokenizer"
    assert read_checkpoint("seeded:0", "ovsegmentor_toy").tokenizer is None


def test_seeded_weights_need_an_architecture():
    with pytest.raises(ValueError, match="seeded:0 needs the name of an architecture: ovsegm"):
        read_checkpoint("seeded:0")
    with pytest.raises(ValueError, match="unknown OVSegmentor model 'vitb'"):
        get_preset("vitb")


def test_stage_2_starts_from_stage_1_with_a_teacher_equal_to_the_student():
    model = OVSegmentor(TOY, "stage2")
    state = seeded_weights(TOY, 3, "stage1")
    load_stage1(model, state, "stage1.pth")
    loaded = model.state_dict()
    for name, value in state.items():
        torch.testing.assert_close(loaded[name], value)
    for name, value in model.img_encoder.state_dict().items():
        assert torch.equal(loaded[f"img_encoder_momentum.{name}"], value)
    # Of a file of stage 2 the teacher itself is taken.
    load_stage1(model, seeded_weights(TOY, 4, "stage2"), "stage2.pth")
    student, teacher = model.img_encoder.pos_embed, model.img_encoder_momentum.pos_embed
    assert not torch.equal(student, teacher)
    with pytest.raises(ValueError, match="missing keys: img_encoder.norm.weight"):
        load_stage1(model, {k: v for k, v in state.items() if k != "img_encoder.norm.weight"}, "a")


def test_loading_into_a_part_reports_the_rest(toy, caplog):
    state = {f"{name}": value for name, value in toy.img_encoder.state_dict().items()}
    more = state | {"extra": torch.ones(1), "bridge_projector.x": torch.ones(1)}
    load_state(toy.img_encoder, more, "a file")
    assert caplog.messages == ["a file: unexpected keys: extra"]


def test_weights_of_whole_numbers_are_refused(toy):
    state = {name: value.to(torch.int8) for name, value in toy.img_encoder.state_dict().items()}
    with pytest.raises(ValueError, match="a file looks quantised: int8"):
        load_state(toy.img_encoder, state, "a file")
