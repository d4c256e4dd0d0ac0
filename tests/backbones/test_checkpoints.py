"""State dicts come from untrusted files, and load completely or not at all."""

import argparse
import os
import re
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from talk2dino.backbones.checkpoints import (
    WithoutInitialisation,
    check_fit,
    load_strict,
    read_state_dict,
    unwrapped,
)
from talk2dino.backbones.text import load_text
from talk2dino.files import load_torch


@pytest.fixture
def state():
    return {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "teacher"])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, state, wrapper):
    prefixed = {f"module.{name}": value for name, value in state.items()}
    torch.save({wrapper: prefixed, "epoch": 3} if wrapper else prefixed, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth").keys() == state.keys()


def test_safetensors_are_read(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    assert read_state_dict(tmp_path / "a.safetensors")["weight"].shape == (2, 3)


@pytest.mark.parametrize("header", [b"[]", b'"x"', b"[" * 100_000, b'{"a": [1]}'])
def test_a_header_of_another_structure_is_damage(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="a.safetensors is damaged"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "teacher.backbone.",
        "teacher._fsdp_wrapped_module.backbone._fsdp_wrapped_module.",
        "ema_model.module.",
        "model.",
        "lightning.net.",
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_a_training_puts_before_the_names_is_taken_off(tmp_path, prefix, suffix):
    names = ["linear_layer.weight", "linear_layer.bias", "hidden_layers.0.weight"]
    content = {prefix + name: torch.full((1,), float(i)) for i, name in enumerate(names)}
    path = tmp_path / f"a{suffix}"
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    assert {name: value.item() for name, value in read_state_dict(path).items()} == {
        name: i for i, name in enumerate(names)
    }


def test_a_compiled_block_within_a_model_has_its_own_name():
    state = {"blocks.0._orig_mod.attn.weight": torch.ones(1), "cls_token": torch.ones(1)}
    assert list(unwrapped(state, "a.pth")) == ["blocks.0.attn.weight", "cls_token"]


@pytest.mark.parametrize("name", ["linear_layer", "proj.linear_layer"])
def test_the_name_of_a_layer_is_no_wrapper(name):
    state = {f"{name}.weight": torch.ones(1), f"{name}.bias": torch.ones(1)}
    assert unwrapped(state, "a.pth").keys() == state.keys()


def test_what_is_left_out_beside_the_weights_is_said(caplog):
    state = {
        "student.backbone.blocks.0.weight": torch.zeros(1),
        "teacher.backbone.blocks.0.weight": torch.ones(1),
        "teacher.backbone.cls_token": torch.ones(1),
        "teacher.dino_head.mlp.weight": torch.zeros(1),
    }
    found = unwrapped(state, "a.pth")
    assert found == {"blocks.0.weight": torch.ones(1), "cls_token": torch.ones(1)}
    assert "teacher.* is used; left out: student.backbone.blocks.0.weight" in caplog.text
    assert "backbone.* is used; left out: teacher.dino_head.mlp.weight" in caplog.text


def test_an_average_is_preferred_and_its_counter_left_out(tmp_path, state):
    average = torch.optim.swa_utils.AveragedModel(nn.Linear(3, 2)).state_dict()
    path = tmp_path / "a.pth"
    torch.save({"state_dict": state, "state_dict_ema": average, "ema": 0.999}, path)
    assert read_state_dict(path)["weight"].equal(average["module.weight"])


def test_two_models_in_one_state_are_refused(state):
    mixed = {**state, **{f"module.{name}": value for name, value in state.items()}}
    with pytest.raises(ValueError, match="a.pth holds two models"):
        unwrapped(mixed, "a.pth")


@pytest.mark.parametrize(
    "beside",
    [
        np.float64(0.25),
        np.int64(3),
        np.arange(3),
        defaultdict(list, loss=[np.float64(1)]),
        argparse.Namespace(lr=0.1, path=Path("x"), shapes={"a": np.float32(1)}),
    ],
)
def test_numbers_of_numpy_and_arguments_beside_the_weights_are_no_code(tmp_path, state, beside):
    torch.save({"model": state, "beside": beside, "epoch": 3}, tmp_path / "a.pth")
    found = read_state_dict(tmp_path / "a.pth")
    assert all(found[name].equal(value) for name, value in state.items())


class Program:
    def __reduce__(self):
        return os.mkdir, ("made_by_the_weights",)


def test_a_program_beside_the_weights_is_refused(tmp_path, state, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state, "beside": Program()}, "a.pth")
    with pytest.raises(ValueError, match="holds pickled code"):
        read_state_dict("a.pth")
    assert os.listdir() == ["a.pth"]


class Net(nn.Module):
    """Parameters, buffers, and a tensor and numbers that are neither."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.scale = nn.Parameter(torch.rand(2).half())
        self.mask, self.sizes = torch.ones(2), [1, 2]

    def forward(self, x):
        return self.blocks(x) * self.scale + self.mask + self.sizes[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", ["ViT-B-16.pt", "a.pth"])
def test_a_torchscript_archive_is_read_for_its_tensors(tmp_path, name):
    net = Net()
    torch.jit.save(torch.jit.script(net), tmp_path / name)
    found, expected = read_state_dict(tmp_path / name), net.state_dict()
    assert found.keys() == expected.keys()
    assert all(found[key].equal(value) for key, value in expected.items())
    assert found["scale"].dtype == torch.float16


class Writing(nn.Module):
    """Writes a file when an interpreter loads it."""

    def __init__(self):
        super().__init__()
        self.inner, self.w = nn.Linear(3, 2), torch.ones(1)

    def forward(self, x):
        return self.inner(x)

    @torch.jit.export
    def __getstate__(self):
        return (self.w, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        torch.save(state[0], "written_by_the_weights")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_the_program_of_a_torchscript_archive_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(Writing()), "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth is a TorchScript archive without weights"):
        read_state_dict("a.pth")
    with pytest.raises(ValueError, match=r"a\.pth is a TorchScript program"):
        load_torch("a.pth")
    assert os.listdir() == ["a.pth"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["archive", "checkpoint"])
def test_a_file_with_changed_bytes_is_read_or_refused_with_its_name(tmp_path, kind):
    path, random = tmp_path / "a.pth", np.random.default_rng(0)
    if kind == "archive":
        torch.jit.save(torch.jit.script(Net()), path)
    else:
        torch.save({"model": Net().state_dict(), "best": np.float64(1)}, path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(100):
        changed = whole[: random.choice([len(whole), random.integers(len(whole))])].copy()
        places = random.integers(len(whole), size=random.integers(1, 30))
        changed[places[places < len(changed)]] = random.integers(256)
        path.write_bytes(changed.tobytes())
        try:
            read_state_dict(path)
        except ValueError as error:
            assert "a.pth" in str(error)


def test_no_line_of_the_package_loads_anything_that_can_run():
    source = Path(__file__).parents[1] / "src"
    runs = r"jit\.load|pickle\.loads?\(|Unpickler\(|weights_only=F|allow_pickle=T|trust_\w+=T"
    for path in source.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(runs, text), path
        assert text.count("torch.load(") == text.count("weights_only=True"), path


@pytest.mark.parametrize(
    "members",
    [
        {"x/constants.pkl": b""},
        {"x/constants.pkl": b"", "x/data.pkl": b"\x80\x02."},
        {"x/constants.pkl": b"", "x/data.pkl": b"cos\nmkdir\n(Vmade\ntR."},
        {"x/constants.pkl": b"", "x/data.pkl": b"\x80\x02c__torch__\nM\n)\x81N", "x/version": b"3"},
    ],
)
def test_a_damaged_torchscript_archive_is_named(tmp_path, members, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "ViT-B-16.pt", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="damaged TorchScript archive"):
        read_state_dict(tmp_path / "ViT-B-16.pt")
    assert os.listdir() == ["ViT-B-16.pt"]


def test_files_without_a_state_dict_are_named(tmp_path):
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="holds no state dict, but a Tensor"):
        read_state_dict(tmp_path / "tensor.pth")
    torch.save({"epoch": 1}, tmp_path / "numbers.pth")
    with pytest.raises(ValueError, match="holds no tensors. Its keys: epoch"):
        read_state_dict(tmp_path / "numbers.pth")
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        read_state_dict(tmp_path / "absent.pth")


def test_missing_unexpected_and_wrong_shapes_are_all_named(state):
    state["extra"] = state.pop("bias")
    state["weight"] = torch.ones(3, 3)
    with pytest.raises(ValueError, match="does not fit this Linear") as caught:
        load_strict(nn.Linear(3, 2), state, "weights/a.pth")
    message = str(caught.value)
    assert "missing keys: bias" in message
    assert "unexpected keys: extra" in message
    assert "weight is (3, 3), expected (2, 3)" in message


def test_values_that_are_no_numbers_are_refused(state):
    state["weight"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="infinite or not a number, in: weight"):
        load_strict(nn.Linear(3, 2), state, "a.pth")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_in_place_of_fractions_are_refused(state, kind):
    state["bias"] = state["bias"].to(kind)
    name = str(kind).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"a.pth looks quantised: {name} .* in bias. Get the"):
        load_strict(nn.Linear(3, 2), state, "a.pth")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_fractions_of_fewer_bits_are_read(state, kind):
    layer = nn.Linear(3, 2)
    load_strict(layer, {name: value.to(kind) for name, value in state.items()}, "a.pth")
    assert layer.weight.dtype == torch.float32 and layer.weight.tolist() == [[1.0] * 3] * 2


def test_whole_numbers_stay_where_the_module_counts():
    norm = nn.BatchNorm1d(2)
    state = {**norm.state_dict(), "num_batches_tracked": torch.tensor(7)}
    load_strict(norm, state, "a.pth")
    assert norm.num_batches_tracked == 7


def test_long_lists_of_keys_are_cut():
    state = {f"k{i}": torch.ones(1) for i in range(20)}
    with pytest.raises(ValueError, match="k7, .*20 in all"):
        load_strict(nn.Identity(), state, "a.pth")


def test_a_fitting_state_is_copied(state):
    layer = nn.Linear(3, 2)
    load_strict(layer, state, "a.pth")
    assert layer.weight.tolist() == state["weight"].tolist()


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n",
        b"<!DOCTYPE html><title>404</title>",
        b"\x10\0\0\0\0\0\0\0not json at all.....",
        b"",
        save({"a": torch.zeros(100)})[:-100],
    ],
)
def test_what_a_download_leaves_instead_of_a_safetensors_file_is_named(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged, .*Download it again"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["mine.pth", "pytorch_model.bin"])
def test_a_safetensors_file_is_read_under_any_name(tmp_path, state, name):
    save_file(state, tmp_path / name, metadata={"format": "pt"})
    assert read_state_dict(tmp_path / name).keys() == state.keys()


class Layer(nn.Module):
    """Every way in which a parameter gets a value, and a buffer."""

    def __init__(self, first):
        super().__init__()
        self.drawn = nn.Parameter(first.clone())
        nn.init.normal_(self.drawn)
        nn.init.constant_(tensor=self.drawn, val=3.0)
        with torch.no_grad():
            self.drawn.mul_(5).clamp_(-1, 1)
        self.copied = nn.Parameter(torch.zeros(2)).requires_grad_(False)
        with torch.no_grad():
            self.copied.copy_(first)
        self.register_buffer("counted", torch.empty(2).fill_(4.0))


def test_parameters_are_left_alone_and_buffers_are_computed():
    first = torch.tensor([7.0, 8.0])
    with WithoutInitialisation():
        layer = Layer(first)
    assert torch.equal(layer.drawn, first) and torch.equal(layer.copied, first)
    assert layer.counted.tolist() == [4.0, 4.0]
    assert layer.drawn.requires_grad and not layer.copied.requires_grad
    assert Layer(first).drawn.tolist() == [1.0, 1.0], "and only in there"


def test_no_random_number_is_drawn_for_a_text_tower():
    before = torch.get_rng_state()
    load_text("toy", "seeded:0")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("values", "damaged"),
    [
        ([1.0, float("nan")], True),
        ([float("inf"), float("-inf")], True),
        ([3e38, 3e38], False),  # finite, unlike their sum
        ([], False),
    ],
)
def test_values_that_are_not_finite_are_found(values, damaged):
    state = {"a": torch.tensor(values)}
    shapes = {"a": (len(values),)}
    if not damaged:
        return check_fit(state, shapes, "x")
    with pytest.raises(ValueError, match="x: values that are infinite or not a number, in: a"):
        check_fit(state, shapes, "x")
