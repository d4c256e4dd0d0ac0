"""FreeDA's bank: pairs of a text key and a visual prototype, which were made offline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from talk2dino.backbones.checkpoints import read_state_dict
from talk2dino.backbones.seeded import PRETRAINED, parse_seeded, seeded_tensor
from talk2dino.config import check_name, optional_module
from talk2dino.files import atomic_path, save_safetensors

INDEX = "knn.index"
METRICS = ("inner_product", "l2")
_FAISS = (
    "faiss",
    f"reading {INDEX} needs faiss: pip install faiss-cpu. Or convert the bank elsewhere "
    "(python -m talk2dino convert freeda <folder> bank.safetensors) and give the file.",
)
WHERE = (
    "Its authors' prototype_embeddings.tar and faiss_index.zip are on Google Drive, ids "
    "1U4d0exJuq29b0rLR6iOT20ErW3DAmgw0 and 1FHjpM0aqPf9OjiuG_341EMlEuq6hsh6L: unpack both into one "
    "folder"
)


@dataclass(frozen=True, eq=False)
class Bank:
    """M pairs, on the CPU."""

    keys: Tensor
    """(M, E) float32, of text."""
    prototypes: Tensor
    """(M, D) float32 or float16, of patches."""
    metric: str
    """One of METRICS: by which keys are near a text."""

    def nearest(self, texts: Tensor, count: int) -> Tensor:
        """(N, at most `count`) places of the keys nearest to texts (N, E): an exact search."""
        found = []
        for some in texts.cpu().split(16):  # M is large
            nearness = some @ self.keys.T
            if self.metric == "l2":
                nearness = 2 * nearness - self.keys.square().sum(dim=1)
            found.append(nearness.topk(min(count, len(self.keys))).indices)
        return torch.cat(found)

    def class_prototypes(self, texts: Tensor, count: int, names: Sequence[str]) -> Tensor:
        """The mean of the vectors whose keys are nearest, those that are not finite left out.

        Args:
            texts: (N, E) of unit length.
            count: of keys.
            names: of the classes, for messages.

        Returns:
            (N, D) float32.

        Raises:
            ValueError: none of a class's vectors is finite.
        """
        means = []
        for name, places in zip(names, self.nearest(texts, count), strict=True):
            vectors = self.prototypes[places].float()  # half precision would be lost in products
            vectors = vectors[vectors.isfinite().all(dim=1)]
            if not len(vectors):
                raise ValueError(
                    f"the bank has no prototype for {name!r}: none of the {len(places)} nearest "
                    "vectors is finite. Give more --neighbours, or another name."
                )
            means.append(vectors.mean(dim=0))
        return torch.stack(means)


def check_bank(model: str, place: str) -> None:
    """Raise for a bank that is not there, or needs a library that is not; reads nothing large."""
    if place == PRETRAINED:  # nobody said where it is
        raise ValueError(
            f"{model} needs a bank of prototypes: --bank <folder or .safetensors>. {WHERE}."
        )
    if parse_seeded(place) is None:
        if not Path(place).exists():
            raise FileNotFoundError(f"{place}: no such bank. {WHERE}.")
        if Path(place).is_dir():
            optional_module(*_FAISS)


def load_bank(place: str, text_width: int, vision_width: int) -> Bank:
    """Read a bank.

    Args:
        place: a folder in the published layout, a file of `convert_bank`, or `seeded:<n>` for 100
            random pairs.
        text_width: E, and
        vision_width: D of the models that it is used with.

    Raises:
        ValueError: it is damaged, or was made with other models.
        FileNotFoundError, ImportError: something is missing.
    """
    seed = parse_seeded(place)
    if seed is not None:
        keys = seeded_tensor(seed, "keys", (100, text_width))
        keys = torch.nn.functional.normalize(keys, dim=-1)
        return Bank(keys, seeded_tensor(seed, "prototypes", (100, vision_width)), METRICS[0])
    bank = read_folder(Path(place)) if Path(place).is_dir() else read_converted(Path(place))
    columns = (("keys", bank.keys, text_width), ("vectors", bank.prototypes, vision_width))
    for what, found, needed in columns:
        if found.shape[1] != needed:
            raise ValueError(
                f"{place}: the bank's {what} have {found.shape[1]} numbers, and the model's "
                f"{needed}. It was made with other backbones; give the bank that belongs to the "
                "model."
            )
    return bank


def convert_bank(folder: Path, out: Path) -> Bank:
    """A folder in the published layout to one safetensors file, which needs no faiss."""
    bank = read_folder(folder)
    tensors = {"keys": bank.keys, "prototypes": bank.prototypes}
    with atomic_path(out) as temporary:
        save_safetensors(tensors, temporary, {"metric": bank.metric})
    return bank


def read_converted(path: Path) -> Bank:
    """What `convert_bank` wrote."""
    tensors = read_state_dict(path)
    try:
        with safe_open(path, "pt") as file:
            metric = (file.metadata() or {}).get("metric", "none")
    except Exception as error:  # the library's own, for a file that is no safetensors
        raise ValueError(f"{path} is no safetensors file ({error}). {WHERE}.") from error
    if set(tensors) != {"keys", "prototypes"}:
        raise ValueError(
            f"{path}: a bank holds keys and prototypes, found {', '.join(sorted(tensors)[:8])}. "
            "Make it with: python -m talk2dino convert freeda <folder> <out>"
        )
    check_name(f"metric in {path}", metric, METRICS)
    keys, prototypes = tensors["keys"], tensors["prototypes"]
    if keys.ndim != 2 or prototypes.ndim != 2 or not 0 < len(keys) == len(prototypes):
        shapes = f"{tuple(keys.shape)} and {tuple(prototypes.shape)}"
        raise ValueError(f"{path}: keys and prototypes must be (M, E) and (M, D), found {shapes}.")
    if not (keys.is_floating_point() and prototypes.is_floating_point()):
        kinds = f"{keys.dtype} and {prototypes.dtype}"
        raise ValueError(f"{path}: keys and prototypes must be floating point, found {kinds}.")
    return Bank(keys.float(), prototypes, metric)


def read_folder(folder: Path) -> Bank:
    """The published layout: key i of knn.index belongs to the i-th .npy file by name."""
    faiss = optional_module(*_FAISS)
    index_path = _the_only(sorted(folder.rglob(INDEX)), folder, INDEX)
    of_vectors = _the_only(sorted({p.parent for p in folder.rglob("*.npy")}), folder, ".npy files")
    files = sorted((p for p in of_vectors.iterdir() if p.is_file()), key=lambda path: path.name)
    strays = [p.name for p in files if p.suffix != ".npy" and p != index_path]
    if strays:
        raise ValueError(
            f"{of_vectors}: {len(strays)} files that are no .npy, as {strays[0]}. In the published "
            "order they would shift the prototypes behind them; move them elsewhere."
        )
    files = [p for p in files if p.suffix == ".npy"]
    try:
        index = faiss.read_index(str(index_path))
    except RuntimeError as error:
        raise ValueError(f"{index_path} is damaged or no faiss index ({error}).") from error
    if index.ntotal != len(files):
        raise ValueError(
            f"{index_path} has {index.ntotal} keys, and {of_vectors} {len(files)} .npy files: they "
            "do not belong together, or something is missing. Unpack both archives again."
        )
    metrics = {faiss.METRIC_INNER_PRODUCT: METRICS[0], faiss.METRIC_L2: METRICS[1]}
    if index.metric_type not in metrics:
        raise ValueError(f"{index_path}: unknown metric {index.metric_type} of the faiss index.")
    return Bank(_read_keys(index, index_path), _read_vectors(files), metrics[index.metric_type])


def _the_only(found: list[Path], folder: Path, what: str) -> Path:
    if len(found) != 1:
        places = f"in {len(found)} places" if found else "nowhere"
        raise ValueError(f"{folder}: a bank has {what} in one place, found {places}. {WHERE}.")
    return found[0]


def _read_keys(index: Any, path: Path) -> Tensor:
    try:
        if hasattr(index, "make_direct_map"):  # an inverted file finds its keys only with it
            index.make_direct_map()
        return torch.from_numpy(index.reconstruct_n(0, index.ntotal))
    except RuntimeError as error:
        raise ValueError(
            f"{path}: {type(index).__name__} does not give its keys back ({error}). Use an index "
            "that holds them: flat, HNSW or IVF."
        ) from error


def _read_vectors(files: Sequence[Path]) -> Tensor:
    vectors: np.ndarray | None = None
    for place, path in enumerate(files):
        try:
            vector = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged or no .npy vector ({error}).") from error
        if vector.dtype not in (np.float16, np.float32, np.float64):
            raise ValueError(f"{path}: a prototype is floating point, found {vector.dtype}.")
        if vectors is None:
            kind = np.float16 if vector.dtype == np.float16 else np.float32
            vectors = np.empty((len(files), vector.size), kind)
        if vector.shape != vectors.shape[1:]:
            width = vectors.shape[1]
            raise ValueError(f"{path}: a vector of shape {vector.shape}, and not ({width},).")
        if vector.dtype.itemsize > vectors.itemsize and vectors.dtype == np.float16:
            vectors = vectors.astype(np.float32)
        vectors[place] = vector
    assert vectors is not None  # a folder of vectors was found
    return torch.from_numpy(vectors)
