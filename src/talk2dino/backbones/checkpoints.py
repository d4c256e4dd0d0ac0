"""State dicts from untrusted files, and loading them so that nothing is silently left out."""

import logging
import mmap
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ContextDecorator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from talk2dino.backbones.seeded import parse_seeded, seeded_state
from talk2dino.config import first_few
from talk2dino.devices import keep_float32
from talk2dino.files import check_archive, check_file, is_torchscript, load_torch

logger = logging.getLogger(__name__)

# Where training scripts of the field put the state dict inside their checkpoints; averages first.
WRAPPERS = (
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema"),
    *("state_dict", "model_state_dict", "model", "teacher", "module", "net", "network"),
)
_WRAPPING_MODULES = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What DataParallel, torch.compile and others put into names, at any place."""
_PARTS = ("teacher.", "model_ema.", "ema_model.", "ema.", "backbone.")
"""Parts of a training that are the weights alone, without the student and the heads."""
_KEPT_PREFIX = "proj."
"""Of our own files with a projection alone, whose prefix says what they are."""

_KEPT = ("copy_", "requires_grad_")
"""What `WithoutInitialisation` does all the same."""

# What a file may be whose names are others: names that it has, and what to call it.
KNOWN_MODELS = (
    (("linear_layer.weight",), "a projection alone"),
    (("encoder.layers.0.",), "a CLIP model of transformers"),
    (("visual.", "token_embedding.weight"), "a CLIP model of OpenAI or open_clip, alone"),
    (("token_embedding.weight",), "a CLIP text tower, alone"),
    (("blocks.", "patch_embed."), "a vision transformer (DINO or timm), alone"),
    (("layer.", "patch_embeddings."), "a vision transformer of transformers"),
    (("encoder.layer.", "word_embeddings."), "a BERT model"),
    (("lora_",), "a LoRA adapter"),
    (("down_blocks.",), "a diffusion model"),
    (("self_attn.q_proj.", "mlp.gate_proj."), "a large language model"),
    (("layer1.0.conv1.",), "a ResNet"),
)

_HARMLESS = re.compile(
    r"(numpy|omegaconf|typing|argparse|pathlib|lightning|lightning_fabric)\..*"
    r"|collections\.defaultdict|(builtins|__builtin__)\.(bool|dict|float|int|list|str|tuple)"
)
"""Objects of trainings that nobody needs for the weights, and that PyTorch's reader refuses."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint: `.pth`/`.pt` (tensors only), TorchScript archive or safetensors.

    What trainings wrap around the weights (`state_dict`, `teacher.backbone.`, `module.`) is taken
    off, and what is left out is said. A TorchScript archive, the format of OpenAI's CLIP files, is
    read for its tensors; nothing of it is run.

    Returns:
        name -> tensor on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, damaged, holds pickled code, or holds no state dict.
    """
    path = Path(path)
    check_file(path, "weights file")
    if path.suffix == ".safetensors" or _is_safetensors(path):
        try:
            return unwrapped(load_file(path), path)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged, cut short, or no safetensors file ({error}). Download it "
                "again."
            ) from error
    if is_torchscript(path):
        return unwrapped(_read_torchscript(path), path)
    with _stand_ins(_harmless_names(path)):
        content = load_torch(path, mmap=True)
    for _ in WRAPPERS:  # they may be in each other
        content = _unwrapped_once(content)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no state dict, but a {type(content).__name__}")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no tensors. Its keys: {first_few(content, 8)}")
    return unwrapped(state, path)


def state_of(weights: str, shapes: Callable[[], Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
    """What `read_state_dict` finds in a file, or `seeded:<n>` of the official names and shapes."""
    seed = parse_seeded(weights)
    return read_state_dict(weights) if seed is None else seeded_state(seed, shapes())


def unwrapped(state: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """A state dict under the names of the model itself, as before it was wrapped for training.

    Raises:
        ValueError: two tensors would have one name.
    """
    names = {
        name: ".".join(part for part in name.split(".") if part not in _WRAPPING_MODULES)
        for name in state
        if name != "n_averaged"
    }
    for part in _PARTS:
        if inside := {name: short for name, short in names.items() if short.startswith(part)}:
            if left := [name for name in names if name not in inside]:
                logger.warning("%s: %s* is used; left out: %s", source, part, first_few(left))
            names = {name: short[len(part) :] for name, short in inside.items()}
    # Lightning: one name before all, which is not that of a layer with its `weight` and `bias`.
    while any(short.count(".") > 1 for short in names.values()):
        first = next(iter(names.values())).partition(".")[0] + "."
        if first == _KEPT_PREFIX or not all(short.startswith(first) for short in names.values()):
            break
        names = {name: short[len(first) :] for name, short in names.items()}
    if len(set(names.values())) < len(names):
        raise ValueError(f"{source} holds two models: some names occur with and without a prefix")
    return {short: state[name] for name, short in names.items()}


def looks_like(names: Iterable[str]) -> str | None:
    """What a checkpoint with these names probably is, or None."""
    names = list(names)
    for marks, kind in KNOWN_MODELS:
        if all(any(mark in name for name in names) for mark in marks):
            return kind
    return None


def check_layout(state: Mapping[str, Tensor], source: str | Path, needed: str) -> None:
    """Raise ValueError, naming the file that is `needed`, for the names of transformers."""
    kind = looks_like(state)
    if kind is not None and kind.endswith("of transformers"):
        raise ValueError(
            f"{source} has the names of the transformers library: it looks like {kind}. Needed is "
            f"{needed}."
        )


class WithoutInitialisation(ContextDecorator, TorchFunctionMode):
    """In here, modules are made without first values of their parameters: memory as it comes.

    For modules that get all of them from a checkpoint; drawing them takes seconds. Buffers are
    computed as ever, which the meta device would not do.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Leave out what changes a parameter in place, unless it copies one from a checkpoint."""
        kwargs = kwargs or {}
        changed = args[0] if args else kwargs.get("tensor")  # as functions of nn.init call it
        name = func.__name__.removesuffix("__")
        if isinstance(changed, nn.Parameter) and name.endswith("_") and name not in _KEPT:
            return changed
        return func(*args, **kwargs)


class FrozenModel(nn.Module):
    """A model that is not trained, in evaluation mode and in float32.

    Args:
        model: with its weights.
        name: what the user calls it.
        weights: where the weights came from.
    """

    _apply = keep_float32

    def __init__(self, model: nn.Module, name: str, weights: str) -> None:
        super().__init__()
        untyped: Any = model
        self.model = untyped
        self.name = name
        self.weights = weights
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy `state` into `module`; every name and shape must agree.

    Raises:
        ValueError: names the missing keys, the unexpected keys, the wrong shapes, and whole
            numbers where the module computes with fractions.
    """
    check_fit(state, state_shapes(module), f"{source} does not fit this {type(module).__name__}")
    fractions = [name for name, own in module.state_dict().items() if own.is_floating_point()]
    if whole := [name for name in fractions if not state[name].is_floating_point()]:
        kind = str(state[whole[0]].dtype).removeprefix("torch.")
        raise ValueError(
            f"{source} looks quantised: {kind} in place of fractions, in {first_few(whole)}. Get "
            "the weights as float32, float16 or bfloat16."
        )
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
        problems.append(f"missing keys: {first_few(missing, 8)}")
    if unexpected := [name for name in state if name not in shapes]:
        problems.append(f"unexpected keys: {first_few(unexpected, 8)}")
    wrong = [
        f"{name} is {tuple(state[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if wrong:
        problems.append(f"wrong shapes: {first_few(wrong, 8)}")
    if damaged := [name for name in shapes if name in state and not _is_finite(state[name])]:
        problems.append(f"values that are infinite or not a number, in: {first_few(damaged, 8)}")
    if problems:
        raise ValueError(f"{complaint}: {'; '.join(problems)}")


def _is_finite(value: Tensor) -> bool:
    if value.is_floating_point() and value.element_size() == 1:
        value = value.float()  # PyTorch cannot ask this of 8-bit floats
    if value.is_meta:
        return True
    # A finite sum, which is several times as fast, leaves no doubt; others may have overflowed.
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def _unwrapped_once(content: Any) -> Any:
    """The first entry of a checkpoint that is called as weights are and holds tensors."""
    for name in WRAPPERS if isinstance(content, Mapping) else ():
        inner = content.get(name)
        if isinstance(inner, Mapping) and any(
            isinstance(value, Tensor | Mapping) for value in inner.values()
        ):
            return inner
    return content


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a header and the brace that opens it."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _harmless_names(path: Path) -> list[str]:
    """What a file of `torch.save` names that may be left out."""
    try:
        check_archive(path)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of PyTorch's older format, or damaged, which `load_torch` says
        return []
    return [name for name in names if _HARMLESS.fullmatch(name)]


class _Part:
    """Takes the place of an object: it holds what the file says that it holds, and does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Dict:
    """Takes the place of a kind of dict: its content may be looked through."""

    def __new__(cls, *args: Any) -> Any:
        return {}


def _stand_ins(names: Iterable[str]) -> Any:
    """Let PyTorch's restricted reader meet objects of these names, without importing any."""
    classes: list[Any] = []
    for full_name in names:
        module, _, name = full_name.rpartition(".")
        base = _Dict if name.lower().endswith("dict") else _Part
        classes.append(type(name, (base,), {"__module__": module}))
    return torch.serialization.safe_globals(classes)


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive, without running its program.

    PyTorch's restricted reader refuses such archives by one member's name; in a private view of
    the file, that member has another.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.partition("/")[2]: name for name in archive.namelist()}
            program = [name for name in members.values() if "/code/" in name and name[-3:] == ".py"]
            code = "".join(archive.read(name).decode() for name in program)
            objects = pickletools.genops(archive.read(members["data.pkl"]))
            found = {str(arg).replace(" ", ".") for op, arg, _ in objects if op.name == "GLOBAL"}
        lists = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", code, re.MULTILINE)
        kept = {name for line in lists for name in re.findall(r'"([^"]+)"', line)}
        known = [name for name in found if name.startswith(("__torch__.", "torch.jit._pickle."))]
        with path.open("rb") as file:
            view: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        with view, _stand_ins(known):
            place = -1
            while (place := view.find(b"/constants.pkl", place + 1)) >= 0:
                view[place : place + 10] = b"/unusednow"
            model = torch.load(view, map_location="cpu", weights_only=True)
    except (
        *(zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, LookupError),
        *(AttributeError, TypeError, pickle.UnpicklingError, zlib.error),
    ) as error:
        raise ValueError(f"{path} is a damaged TorchScript archive") from error
    state: dict[str, Tensor] = {}
    waiting, seen = [("", model)], set()
    while waiting:
        prefix, part = waiting.pop()
        if not isinstance(part, _Part) or id(part) in seen:
            continue
        seen.add(id(part))
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and name in kept:
                state[prefix + name] = value
            waiting.append((f"{prefix}{name}.", value))
    if not state:
        raise ValueError(f"{path} is a TorchScript archive without weights that can be read")
    return state
