"""State dicts from untrusted files, and loading them so that nothing is silently left out."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from talk2dino.files import load_torch

# Where training scripts of the field put the state dict inside their checkpoints.
WRAPPERS = ("state_dict", "model", "teacher")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint: `.pth`/`.pt` (tensors only), TorchScript archive or safetensors.

    Wrappers (`state_dict`, `model`, `teacher`) and a `module.` prefix are taken off. A
    TorchScript archive, the format of OpenAI's CLIP files, is read for its tensors.

    Returns:
        name -> tensor on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, damaged, holds pickled code, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if _is_safetensors(path):
        raise ValueError(f"{path} is a safetensors file. Rename it to {path.stem}.safetensors.")
    content = _read_torchscript(path) if _is_torchscript(path) else load_torch(path)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no state dict, but a {type(content).__name__}")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no tensors. Its keys: {_listed(map(str, content))}")
    if all(name.startswith("module.") for name in state):
        state = {name[len("module.") :]: value for name, value in state.items()}
    return state


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy `state` into `module`; every name and shape must agree.

    Raises:
        ValueError: names the missing keys, the unexpected keys, the wrong shapes, and whole
            numbers where the module computes with fractions.
    """
    check_fit(state, state_shapes(module), f"{source} does not fit this {type(module).__name__}")
    check_not_quantised(state, module, source)
    module.load_state_dict(dict(state))


def state_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything in a module's state dict."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def check_fit(
    state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], complaint: str
) -> None:
    """Raise ValueError, beginning with `complaint`, unless `state` has these shapes, all finite."""
    problems = []
    if missing := [name for name in shapes if name not in state]:
        problems.append(f"missing keys: {_listed(missing)}")
    if unexpected := [name for name in state if name not in shapes]:
        problems.append(f"unexpected keys: {_listed(unexpected)}")
    wrong = [
        f"{name} is {tuple(state[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if wrong:
        problems.append(f"wrong shapes: {_listed(wrong)}")
    if damaged := [name for name in shapes if name in state and not _is_finite(state[name])]:
        problems.append(f"values that are infinite or not a number, in: {_listed(damaged)}")
    if problems:
        raise ValueError(f"{complaint}: {'; '.join(problems)}")


def _is_finite(value: Tensor) -> bool:
    if value.is_floating_point() and value.element_size() == 1:
        value = value.float()  # PyTorch cannot ask this of 8-bit floats
    return value.is_meta or bool(value.isfinite().all())


def check_not_quantised(state: Mapping[str, Tensor], module: nn.Module, source: str | Path) -> None:
    """Raise ValueError if tensors of `state` would be copied without their scales."""
    whole = [
        name
        for name, value in module.state_dict().items()
        if value.is_floating_point() and not state[name].is_floating_point()
    ]
    if whole:
        kind = str(state[whole[0]].dtype).removeprefix("torch.")
        raise ValueError(
            f"{source} looks quantised: {kind} in place of fractions, in {_listed(whole)}. Get the "
            "weights as float32, float16 or bfloat16."
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, after a look at its beginning and its size."""
    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path} is empty (0 bytes)")
    with path.open("rb") as file:
        start = file.read(64)
        length = int.from_bytes(start[:8], "little")
        file.seek(8)
        header = file.read(length) if length < size else b""
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself. Run: git lfs pull")
    if start[8:9] != b"{" and start.lstrip()[:1] == b"<":  # the length may look like this, too
        raise ValueError(f"{path} is a web page, not a safetensors file. Download it again.")
    try:
        ends = [
            entry["data_offsets"][1]
            for name, entry in json.loads(header).items()
            if name != "__metadata__"
        ]
        expected = 8 + length + max(ends, default=0)
        if size < expected:
            raise ValueError(
                f"{path} is cut short: {size} of {expected} bytes, as after an interrupted "
                "download. Download it again."
            )
        return load_file(path)
    except (
        *(SafetensorError, json.JSONDecodeError, UnicodeDecodeError, RecursionError),
        *(AttributeError, TypeError, LookupError),  # JSON of another structure
    ) as e:
        raise ValueError(f"{path} is damaged, cut short, or no safetensors file ({e})") from e


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a header and the brace that opens it."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception as error:  # a damaged list of parts: BadZipFile, NotImplementedError, ...
        raise ValueError(f"{path} is damaged: {error}") from error


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive; at most TorchScript runs, which cannot call Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated; OpenAI's files stay it
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    except RuntimeError as error:
        raise ValueError(f"{path} is a damaged TorchScript archive") from error


def _listed(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
