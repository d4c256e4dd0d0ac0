"""Devices are checked against this machine before anything is loaded."""

from types import SimpleNamespace

import pytest
import torch

from talk2dino.devices import (
    Fetched,
    check_compiler,
    mixed_precision,
    resolve_device,
    resolve_dtype,
    use_tf32,
)


def test_the_cpu_is_always_there():
    assert resolve_device("cpu") == torch.device("cpu")


def test_auto_takes_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device().type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device().type == "cpu"


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"sees no cuda device here. Use cpu"):
        resolve_device("cuda")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="has 1 CUDA device"):
        resolve_device("cuda:1")


def tf32():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_float32_means_float32_on_cuda_unless_tf32_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("auto", "cuda", "cuda:0"):
        use_tf32(True)
        assert resolve_device(name).type == "cuda"
        assert tf32() == (False, False)
    with mixed_precision("tf32", torch.device("cuda")):
        assert tf32() == (True, True)
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == torch.float32
    assert tf32() == (False, False)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu0"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(ValueError, match="unknown device"):
        resolve_device(name)


def test_dtypes_by_name():
    assert resolve_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match=r"unknown dtype 'half'. Known: float32"):
        resolve_dtype("half")


def test_mixed_precision_by_name():
    product = torch.ones(2, 2)
    for amp, dtype in (("", "float32"), ("auto", "bfloat16"), ("float16", "float16")):
        with mixed_precision(amp, torch.device("cpu")):
            assert (product @ product).dtype == resolve_dtype(dtype)
    with pytest.raises(ValueError, match="unknown amp 'float64'"):
        mixed_precision("float64", torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "triton", "found"),
    [("cuda", None, False), ("cuda", "there", True), ("mps", "there", False), ("cpu", None, True)],
)
def test_where_nothing_can_be_compiled_is_known_before(monkeypatch, device, triton, found):
    monkeypatch.setattr("talk2dino.devices.find_spec", lambda name: triton)
    monkeypatch.setattr("talk2dino.devices.shutil.which", lambda name: name)
    if found:
        return check_compiler(torch.device(device))
    with pytest.raises(ValueError, match=f"--compile on {device} needs .* the package triton"):
        check_compiler(torch.device(device))


def test_what_a_gpu_fetches_is_waited_for_when_it_is_read(monkeypatch):
    calls = []
    arrived = SimpleNamespace(
        record=lambda stream: calls.append(f"behind {stream}"),
        synchronize=lambda: calls.append("arrived"),
    )
    monkeypatch.setattr(torch.cuda, "Event", lambda: arrived)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"work of {device}")
    pinned = SimpleNamespace(copy_=lambda tensor, non_blocking: calls.append("copy") or 7)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: pinned)
    device = SimpleNamespace(type="cuda")
    fetched = Fetched([SimpleNamespace(device=device, shape=(2,), dtype=torch.float32)] * 2)
    assert calls == ["copy", "copy", f"behind work of {device}"]
    assert fetched.read() == [7, 7] and calls[-1] == "arrived"


def test_on_a_cpu_nothing_has_to_be_fetched():
    (found,) = Fetched([torch.ones(2)]).read()
    assert found.tolist() == [1, 1] and Fetched([]).read() == []
