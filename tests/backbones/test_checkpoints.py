"""State dicts come from untrusted files, and load completely or not at all."""

import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from talk2dino.backbones.checkpoints import load_strict, read_state_dict


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


def test_a_damaged_safetensors_file_is_named(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="a.safetensors is damaged"):
        read_state_dict(tmp_path / "a.safetensors")


@pytest.mark.parametrize("header", [b"[]", b'"x"', b"[" * 100_000, b'{"a": [1]}'])
def test_a_header_of_another_structure_is_damage(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="a.safetensors is damaged"):
        read_state_dict(path)


def test_a_header_as_long_as_a_web_page_begins_is_no_web_page(tmp_path, state):
    path, length = tmp_path / "a.safetensors", int.from_bytes(b" <", "little")
    save_file(state, path, metadata={"note": ""})
    short = int.from_bytes(path.read_bytes()[:8], "little")
    save_file(state, path, metadata={"note": "x" * (length - short)})
    assert path.read_bytes().startswith(b" <")
    assert read_state_dict(path).keys() == state.keys()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_archive_is_read_for_its_tensors(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), tmp_path / "ViT-B-16.pt")
    assert set(read_state_dict(tmp_path / "ViT-B-16.pt")) == {"weight", "bias"}


def test_a_damaged_torchscript_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "ViT-B-16.pt", "w") as archive:
        archive.writestr("x/constants.pkl", b"")
    with pytest.raises(ValueError, match="damaged TorchScript archive"):
        read_state_dict(tmp_path / "ViT-B-16.pt")


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
    with pytest.raises(ValueError, match="k7 and 12 more"):
        load_strict(nn.Identity(), state, "a.pth")


def test_a_fitting_state_is_copied(state):
    layer = nn.Linear(3, 2)
    load_strict(layer, state, "a.pth")
    assert layer.weight.tolist() == state["weight"].tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "git lfs pull"),
        (b"<!DOCTYPE html><title>404</title>", "is a web page"),
        (b"\x10\0\0\0\0\0\0\0not json at all.....", "damaged, cut short, or no safetensors"),
        (b"", "model.safetensors is empty \\(0 bytes\\)"),
    ],
)
def test_what_a_download_leaves_instead_of_a_safetensors_file_is_named(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_state_dict(path)


def test_a_safetensors_file_that_is_cut_short_says_how_much_is_there(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=rf"{len(whole) - 100} of {len(whole)} bytes"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["mine.pth", "pytorch_model.bin"])
def test_a_safetensors_file_under_another_name_is_to_be_renamed(tmp_path, state, name):
    save_file(state, tmp_path / name, metadata={"format": "pt"})
    renamed = f"Rename it to {name.split('.')[0]}.safetensors"
    with pytest.raises(ValueError, match=f"{name} is a safetensors file. {renamed}"):
        read_state_dict(tmp_path / name)
