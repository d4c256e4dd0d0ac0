"""Images, ground truth and class names of a data set, as its YAML file says where they are.

Pictures are decoded and resized with OpenCV, as MMSegmentation does. MMSegmentation's own data sets
are the reference, chosen by `--reader mmseg`: this is the one place where mmcv and mmseg are
imported, what to install is said, and their noise at import is kept quiet.
"""

import hashlib
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from talk2dino.benchmarks.data.labels import forbidden, label_size, read_labels
from talk2dino.benchmarks.table import Benchmark
from talk2dino.config import check_name, first_few
from talk2dino.files import file_sha256, listed
from talk2dino.pictures.drawing import class_colours
from talk2dino.pictures.images import check_image, check_whole, other_pictures
from talk2dino.textfiles import read_names

logger = logging.getLogger(__name__)
READERS = ("own", "mmseg")
INSTALL = (
    "Install them with: pip install 'setuptools<81' && PYTHONPATH=$PWD/build_support pip install "
    "--no-build-isolation --no-deps -r requirements-benchmark.txt"
)

_SAMPLED = 16  # labels decoded ahead: enough for mistakes that are in every file


@dataclass(frozen=True)
class Sample:
    """One image of a data set, not read yet."""

    image: str
    """Path below the data root."""
    label: str
    """Path below the data root."""
    name: str
    """Of its label maps: the image's path below the folder of images, without suffix. Of benchmarks
    the last part of it, as published, if that tells all images apart."""


class EvaluationSet:
    """One data set's files.

    Args:
        benchmark: its row.
        data_root: the folder that all benchmarks are below; own data may be elsewhere.

    Raises:
        FileNotFoundError: a folder or the split file is not there.
        ValueError: there are no images, or none with a label.
    """

    def __init__(self, benchmark: Benchmark, data_root: str | Path) -> None:
        self.benchmark = benchmark
        root = Path(data_root)
        images, labels, split = find_places(benchmark, root)
        folders = (images, labels)
        if not all(path.is_relative_to(root) and ".." not in path.parts for path in folders):
            root = Path(os.path.commonpath(list(map(os.path.abspath, folders))))
        self.data_root = root
        """The given one if both folders are below it, else the deepest that has both."""
        self.image_folder = images
        self.unlabelled: list[str] = []
        """Own images that are left out because they have no label."""
        self.versions: dict[str, str] = {}
        """Of libraries that move a number, besides OpenCV."""
        pairs = self._pairs(images, labels, split)
        names = [Path(os.path.relpath(image, images)).with_suffix("") for image, _ in pairs]
        if not benchmark.folders and len({name.name for name in names}) == len(names):
            names = [Path(name.name) for name in names]
        self.samples = [
            Sample(os.path.relpath(image, root), os.path.relpath(label, root), name.as_posix())
            for (image, label), name in zip(pairs, names, strict=True)
        ]
        if outside := [sample.name for sample in self.samples if sample.name.startswith("../")]:
            raise ValueError(
                f"{benchmark.key}: not in {images}: {first_few(outside)}. See {split}."
            )
        if not self.samples:
            where = split or f"{images}, files *{', *'.join(benchmark.image_suffixes)}"
            raise ValueError(f"{benchmark.key}: no images in {where}")

    def _pairs(self, images: Path, labels: Path, split: Path | None) -> list[tuple[Path, Path]]:
        """The image and label of every sample, in order."""
        row, suffixes = self.benchmark, self.benchmark.image_suffixes
        if split is not None:
            found = []
            for stem in read_names(split):
                paths = [images / f"{stem}{suffix}" for suffix in suffixes]
                image = next((path for path in paths if path.is_file()), paths[0])
                found.append((image, labels / f"{stem}{row.label_suffix}"))
            return found
        stems = {
            name: name.removesuffix(next(filter(name.endswith, suffixes)))
            for name in sorted(files_below(images, suffixes))
        }
        pairs = [
            (images / name, labels / f"{stem}{row.label_suffix}") for name, stem in stems.items()
        ]
        if not row.folders:
            return pairs
        often = Counter(stems.values())
        if twice := [name for name, stem in stems.items() if often[stem] > 1]:
            raise ValueError(f"{row.key}: several images belong to one label: {first_few(twice)}.")
        labelled = [pair for pair in pairs if pair[1].is_file()]
        with_label = {image for image, _ in labelled}
        self.unlabelled = [name for name in stems if images / name not in with_label]
        if not labelled:
            others = sorted(files_below(labels, ("",)))
            raise ValueError(
                f"{row.key}: no image has a label. {images} holds "
                f"{first_few(stems) or f'no *{suffixes[0]}'}; {labels} holds "
                f"{first_few(others) or 'nothing'}. A label is called like its image with "
                f"{row.label_suffix} in place of {' or '.join(suffixes)}: see "
                "image_suffix and label_suffix."
            )
        return labelled

    @property
    def classes(self) -> list[str]:
        """Names by id; the background, if any, is the first."""
        return list(self.benchmark.classes)

    @property
    def prompted_classes(self) -> list[str]:
        """The classes that are embedded as text: all but the background."""
        return self.classes[1:] if self.benchmark.background else self.classes

    @property
    def palette(self) -> np.ndarray:
        """(C, 3) uint8 RGB, by id."""
        row = self.benchmark
        if row.palette:
            return np.array(row.palette, np.uint8)
        return class_colours(len(row.classes), background=row.background)

    def read_image(self, index: int) -> tuple[np.ndarray, tuple[int, int]]:
        """The resized image (h, w, 3) uint8 RGB, and the original (height, width).

        Raises:
            ValueError: the file is no image that OpenCV can read.
        """
        path = self.data_root / self.samples[index].image
        check_whole(path)
        resized, size_hw = self._decoded(index, path)
        if resized is None:
            raise ValueError(f"{path} is no image that OpenCV can read. Save it anew.")
        return cv2.cvtColor(resized, cv2.COLOR_BGR2RGB), size_hw

    def _decoded(self, index: int, path: Path) -> tuple[np.ndarray | None, tuple[int, int]]:
        """The resized image (h, w, 3) uint8 BGR, None if that fails; the original's size."""
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            return None, (0, 0)
        height, width = pixels.shape[:2]
        high, wide = self.benchmark.protocol.scored_size(height, width)
        return cv2.resize(pixels, (wide, high), interpolation=cv2.INTER_LINEAR), (height, width)

    @cached_property
    def pictures(self) -> str:
        """A digest of all images, each of which is read for it: once for all that ask."""
        images = [self.data_root / sample.image for sample in self.samples]
        return hashlib.sha256("".join(map(file_sha256, images)).encode()).hexdigest()

    def read_label_file(self, index: int) -> np.ndarray:
        """The values of a label file, which benchmarks may share; see `read_labels`."""
        path = self.data_root / self.samples[index].label
        return read_labels(path, self.benchmark.rules.colours)

    def read_label(self, index: int, values: np.ndarray | None = None) -> np.ndarray:
        """Class ids (H, W) uint8, uint16 for more than 255 classes; see `labels.ignored_label`.

        Args:
            index: of the image.
            values: of its label file, where that is read already.

        Raises:
            ValueError: not one label per pixel, or a value that means nothing.
        """
        values = self.read_label_file(index) if values is None else values
        row, rules = self.benchmark, self.benchmark.rules
        labels, unknown = rules.class_ids(values, len(row.classes))
        if unknown.any() and not rules.unknown_ignored:
            path = self.data_root / self.samples[index].label
            text = f"{path}: {unknown_values(row, values, unknown)}."
            if row.source is not None:
                text += " `python -m talk2dino data check` names the usual mistakes."
            raise ValueError(text)
        return labels


class MMSegSet(EvaluationSet):
    """A data set whose files, names and pictures come from MMSegmentation's data set and pipeline.

    Its readers do BGR, too.
    """

    def __init__(self, benchmark: Benchmark, data_root: str | Path) -> None:
        _, pipelines, versions = load_openmmlab()
        super().__init__(benchmark, data_root)
        self.versions = versions
        self._load_image = pipelines.LoadImageFromFile()
        protocol = benchmark.protocol
        scale = (protocol.long_side, protocol.short_side)
        self._resize = pipelines.Resize(img_scale=scale, keep_ratio=True)

    def _pairs(self, images: Path, labels: Path, split: Path | None) -> list[tuple[Path, Path]]:
        row, datasets = self.benchmark, load_openmmlab()[0]
        options: dict[str, Any] = {"pipeline": [], "test_mode": True}
        options |= {"img_dir": str(images), "ann_dir": str(labels)}
        cls = getattr(datasets, row.type, None)
        if cls is None:
            cls = datasets.CustomDataset
            options |= {"classes": row.classes, "palette": self.palette.tolist()}
            options |= {"img_suffix": row.image_suffixes[0], "seg_map_suffix": row.label_suffix}
            options["reduce_zero_label"] = row.rules.shift < 0
        if split is not None:
            options["split"] = os.devnull  # MMSegmentation's reader keeps marks and repeated names
        self._dataset = cls(**options)
        for name in [] if split is None else read_names(split):
            seg_map = {"seg_map": name + self._dataset.seg_map_suffix}
            info = {"filename": name + self._dataset.img_suffix, "ann": seg_map}
            self._dataset.img_infos.append(info)
        palette = tuple(map(tuple, self._dataset.PALETTE))
        self.benchmark = replace(row, classes=tuple(self._dataset.CLASSES), palette=palette)
        infos = self._dataset.img_infos
        return [(images / info["filename"], labels / info["ann"]["seg_map"]) for info in infos]

    def _decoded(self, index: int, path: Path) -> tuple[np.ndarray | None, tuple[int, int]]:
        results: dict[str, Any] = {"img_info": self._dataset.img_infos[index]}
        self._dataset.pre_pipeline(results)
        try:
            results = self._load_image(results)
        except AttributeError:  # OpenCV's None for a file it cannot read
            return None, (0, 0)
        height, width = results["ori_shape"][:2]
        return self._resize(results)["img"], (height, width)


def open_dataset(row: Benchmark, data_root: str | Path, reader: str = "own") -> EvaluationSet:
    """The files of a data set, by one of READERS.

    Raises:
        ValueError: no such reader; there are no images.
        ImportError: mmcv or mmseg is missing where they are the reader.
        FileNotFoundError: a folder or the split file is not there.
    """
    mmseg = check_name("reader", reader, READERS) == "mmseg"
    return MMSegSet(row, data_root) if mmseg else EvaluationSet(row, data_root)


@lru_cache(maxsize=1)
def load_openmmlab() -> tuple[ModuleType, ModuleType, dict[str, str]]:
    """Import mmcv and mmseg, quietly; neither needs a compiled operation.

    Returns:
        mmseg.datasets, mmseg.datasets.pipelines, and the versions of both libraries.

    Raises:
        ImportError: one is missing or of a version that does not work; says what to install.
    """
    logging.disable(logging.WARNING)  # "No CUDA runtime is found": nothing is compiled here
    levels = {handler: handler.level for handler in logging.root.handlers}
    try:
        with warnings.catch_warnings():
            # mmcv announces its version 2; libraries of 2022 use names deprecated since.
            warnings.simplefilter("ignore")
            mmcv = import_module("mmcv")
            # mmseg logs "Loaded N images" to stderr unless its logger is made before.
            import_module("mmcv.utils").get_logger("mmseg", log_level=logging.WARNING)
            mmseg = import_module("mmseg")
            datasets = import_module("mmseg.datasets")
            pipelines = import_module("mmseg.datasets.pipelines")
    except ImportError as error:
        missing = str(error).partition("\n")[0]  # mmcv 2 lacks modules which mmcv 1 has
        raise ImportError(
            f"--reader mmseg needs mmcv 1.7 and mmsegmentation 0.30 ({missing}). {INSTALL}"
        ) from error
    except AssertionError as error:  # mmseg's own check of mmcv's version
        raise ImportError(f"mmcv and mmsegmentation do not fit: {error}. {INSTALL}") from error
    finally:
        logging.disable(logging.NOTSET)
        for handler, level in levels.items():  # mmcv silences the warnings of all others
            handler.setLevel(level)
    return datasets, pipelines, {"mmcv": mmcv.__version__, "mmseg": mmseg.__version__}


class MissingPlaces(FileNotFoundError):
    """Folders or a list of a data set are not there."""

    def __init__(self, row: Benchmark, paths: Sequence[Path]) -> None:
        self.paths = paths
        if row.folders:
            where = "The keys images, labels, split and data_root of its YAML file name the places."
        elif row.source is not None:
            where = "`python -m talk2dino data check` says what belongs where."
        else:
            where = f"configs/datasets/{row.key}.yaml says what belongs where."
        super().__init__(f"{row.key}: there is no {', no '.join(map(str, paths))}. {where}")


def find_places(row: Benchmark, root: Path) -> tuple[Path, Path, Path | None]:
    """The folders of images and labels, and the list of images if there is one.

    Raises:
        MissingPlaces: not all are there.
    """
    found: list[Path | None] = []
    missing: list[Path] = []
    for name in (row.images, row.labels, row.split):
        places = [folder / name for folder in row.folders or (root,)] if name else []
        found.append(next((place for place in places if place.exists()), None))
        missing += places if found[-1] is None else []
    images, labels, split = found
    if images is None or labels is None or missing:
        raise MissingPlaces(row, missing)
    return images, labels, split


def files_below(folder: Path, suffixes: Sequence[str]) -> list[str]:
    """Paths below `folder` of the files with these endings, with `/`."""
    return [
        Path(place, name).relative_to(folder).as_posix()
        for place, _, names in os.walk(folder, followlinks=True)  # as mmcv does
        for name in names
        if name.endswith(tuple(suffixes)) and not name.startswith(".")
    ]


def unknown_values(row: Benchmark, values: np.ndarray, unknown: np.ndarray) -> str:
    """Which values of a label file mean nothing, how many pixels have them, and what may help."""
    found, counts = np.unique(values[unknown], axis=0, return_counts=True)
    names = [str(value.tolist()) for value in found[np.argsort(-counts, kind="stable")][:5]]
    known = row.rules.known(len(row.classes), values.dtype == np.uint16).tolist()
    grey = values.ndim == 2
    text = f"{int(unknown.sum())} pixels with {'label' if grey else 'colour'} {', '.join(names)}"
    text += f"; {row.key} has the labels "
    if grey and known and known[-1] - known[0] + 1 == len(known):
        text += f"{known[0]} to {known[-1]}"
    else:
        text += first_few(known if grey else [[v >> 16, v >> 8 & 255, v & 255] for v in known])
    if row.folders:
        wide = " (a file of 16 bits, where 65535 is what 255 is of 8)"
        text += wide * (values.dtype == np.uint16)
        text += ". See the keys ignore, shift and values, or say `unknown: ignore`"
    return text


def check_files(dataset: EvaluationSet) -> None:
    """Look for missing files, sizes that differ, colours in place of ids, and wrong labels.

    Only headers are read, but for the first labels.

    Raises:
        FileNotFoundError, ValueError: see `problems_of`.
    """
    for problem in problems_of(dataset):
        raise problem
    for note in notes_of(dataset):
        logger.warning("%s", note)
    for index in range(min(_SAMPLED, len(dataset.samples))):
        dataset.read_label(index)


def problems_of(dataset: EvaluationSet) -> Iterator[Exception]:
    """What keeps a data set from being evaluated, as far as names and headers tell."""
    row, root = dataset.benchmark, dataset.data_root
    pairs = [(root / sample.image, root / sample.label) for sample in dataset.samples]
    for place, kind in enumerate(("image", "label")):
        missing = [pair[place] for pair in pairs if not pair[place].is_file()]
        if missing:
            names = first_few([str(path.relative_to(root)) for path in missing])
            text = (
                f"{row.key}: {len(missing)} of {len(pairs)} {kind} files are missing below {root}"
            )
            yield FileNotFoundError(f"{text}: {names}{_other_endings(missing)}.")
    there = [pair for pair in pairs if pair[0].is_file() and pair[1].is_file()]
    wrong = [found for pair in there if (found := pair_problem(*pair, row.rules.colours))]
    if wrong:
        yield ValueError(f"{row.key}: {len(wrong)} files cannot be used: {first_few(wrong)}.")


def _other_endings(missing: Sequence[Path]) -> str:
    """How the names of missing files end where they stand, as a clause."""
    there: dict[tuple[Path, str], set[str]] = {}
    for folder in {path.parent for path in missing}:
        for path in listed(folder, "*"):
            there.setdefault((folder, path.stem), set()).add(path.suffix)
    found = set().union(*(there.get((path.parent, path.stem), ()) for path in missing))
    return f", but *{', *'.join(sorted(found))} is there: rename the files" if found else ""


def notes_of(dataset: EvaluationSet) -> Iterator[str]:
    """What is left out of a data set."""
    row = dataset.benchmark
    if dataset.unlabelled:
        names = first_few(dataset.unlabelled)
        yield f"{row.key}: {len(dataset.unlabelled)} images without a label, left out: {names}"
    elif row.split is None and not row.folders:
        folder, endings = dataset.image_folder, row.image_suffixes
        files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
        if left := other_pictures(path for path in files if not path.name.endswith(endings)):
            yield f"{row.key}: pictures that do not end in {' or '.join(endings)}: {left}"


def fingerprint(dataset: EvaluationSet) -> str:
    """A hash of the images' names and sizes in bytes, and of the labels' names and contents."""
    digest = hashlib.sha256()
    for sample in dataset.samples:
        size = (dataset.data_root / sample.image).stat().st_size
        digest.update(f"{sample.image}\0{size}\n{sample.label}\n".encode(errors="surrogateescape"))
        digest.update((dataset.data_root / sample.label).read_bytes())
    return digest.hexdigest()[:16]


def pair_problem(image: Path, label: Path, colours: bool = False) -> str | None:
    """Why an image and its label do not fit, as far as their headers tell."""
    try:
        (height, width), labels = check_image(image), label_size(label, colours)
    except PermissionError as error:
        return forbidden(error.filename or image)
    except (ValueError, OSError) as error:
        return str(error).rstrip(".")
    if (height, width) != labels:
        return f"{label} is {labels[1]}x{labels[0]} pixels, but its image is {width}x{height}"
    return None
