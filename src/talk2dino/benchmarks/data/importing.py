"""Other programs' annotations as a data set: label PNGs and the YAML file, one function a format.

Every function returns `Found`; the files are then written as all converted labels are.
"""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from talk2dino.benchmarks.data.convert import Conversion, Labels, draw_segments
from talk2dino.benchmarks.data.labels import (
    IGNORED,
    WIDE_IGNORED,
    LabelRules,
    Value,
    ignored_label,
    read_labels,
)
from talk2dino.files import listed
from talk2dino.pictures.images import IMAGE_SUFFIXES
from talk2dino.textfiles import check_once, read_json, read_text

_YAML, _CLASSES = "dataset.yaml", "classes.txt"
_BACKGROUNDS = ("background", "_background_")
_VOC_BORDER = (224, 224, 192)
Named = list[tuple[str, Callable[[], Labels]]]
"""Image files, and what makes the label of each; see `Conversion`."""


@dataclass(frozen=True)
class Found:
    """What a source holds."""

    classes: list[str]
    """Names by id; a background comes first."""
    images: Path
    labels: Named
    """Below that folder."""


def plan_import(
    form: str,
    source: Path,
    output: Path,
    images: Path | None = None,
    overwrite: bool = False,
) -> tuple[list[Conversion], dict[str, str]]:
    """Read a source and say what is to be written for it; writes nothing.

    Args:
        form: one of FORMATS.
        source: the JSON file of coco-panoptic and coco-instances, else a folder.
        output: gets labels/, classes.txt and dataset.yaml.
        images: folder of the images, if they are not where the format puts them.
        overwrite: another data set may be there.

    Returns:
        the labels, and name -> text of the other files, the YAML file last.

    Raises:
        FileNotFoundError: a part of the source is missing.
        ValueError: it is of another format, or damaged; the message names the file.
        FileExistsError: another data set is there.
    """
    try:
        found = FORMATS[form](source, images)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{source} is not {form}: {type(error).__name__} {error}.") from error
    if not found.labels:
        raise ValueError(f"{source}: no label of any image is there.")
    stems, endings = zip(*(os.path.splitext(name) for name, _ in found.labels), strict=True)
    check_once(stems, f"{source}: images")
    check_once(found.classes, f"{source}: classes")
    labels = [
        Conversion(Path(name), output / "labels" / f"{stem}.png", convert)
        for stem, (name, convert) in zip(stems, found.labels, strict=True)
    ]
    suffixes = sorted(set(endings))
    content = {
        "images": str(found.images.absolute()),
        "labels": "labels",
        "image_suffix": suffixes if len(suffixes) > 1 else suffixes[0],
        "classes": _CLASSES,
        "background": found.classes[0].lower() in _BACKGROUNDS,
    }
    files = {
        _CLASSES: "".join(f"{name.replace(';', ',')}\n" for name in found.classes),
        _YAML: f"# {form} of {source}\n{yaml.safe_dump(content, sort_keys=False)}",
    }
    if not overwrite:
        for name, text in files.items():
            path = output / name
            if path.exists() and path.read_text(encoding="utf-8") != text:
                raise FileExistsError(
                    f"{path} belongs to another import. Choose another --output, or --overwrite."
                )
    return labels, files


def coco_panoptic(source: Path, images: Path | None) -> Found:
    """COCO panoptic: JSON, and beside it a folder of its name with PNGs of R + 256 G + 65536 B."""
    content = read_json(source)
    classes, place = _categories(content)
    files = {image["id"]: _inside(image["file_name"], source) for image in content["images"]}
    labels: Named = []
    for entry in content["annotations"]:
        mask = source.with_suffix("") / _inside(entry["file_name"], source)
        table = {int(part["id"]): place[part["category_id"]] for part in entry["segments_info"]}
        labels.append((files[entry["image_id"]], partial(_panoptic, mask, table, len(classes))))
    return Found(classes, _image_folder(source, labels, images), labels)


def _panoptic(mask: Path, table: Mapping[int, int], num_classes: int) -> Labels:
    ids = read_labels(mask, colours=True).astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    present, places = np.unique(ids, return_inverse=True)
    ignored = ignored_label(num_classes)
    kind = np.uint8 if ignored == IGNORED else np.uint16
    labels = np.array([table.get(value, ignored) for value in present.tolist()], kind)
    unknown = [value for value in present.tolist() if value and value not in table]
    return labels[places].reshape(ids.shape), unknown


def coco_instances(source: Path, images: Path | None) -> Found:
    """COCO instances: polygons and run lengths, later annotations over earlier ones."""
    content = read_json(source)
    names, place = _categories(content)
    segments: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
    for entry in content["annotations"]:
        label = place[entry["category_id"]] + 1
        segments[entry["image_id"]].append((label, entry["segmentation"]))
    labels: Named = []
    for image in content["images"]:
        size_hw = int(image["height"]), int(image["width"])
        where, wide = f"{source}, image {image['id']}", len(names) + 1 > IGNORED
        convert = partial(draw_segments, where, size_hw, segments[image["id"]], wide)
        labels.append((_inside(image["file_name"], source), convert))
    return Found(["background", *names], _image_folder(source, labels, images), labels)


def voc_colour(source: Path, images: Path | None) -> Found:
    """Pascal VOC's folders with its colours; names from class_names.txt, or VOC's own."""
    from talk2dino.benchmarks.table import BENCHMARKS

    listing = source / "class_names.txt"
    classes = list(BENCHMARKS["voc"].classes)
    if listing.is_file():
        classes = [line.strip() for line in read_text(listing).splitlines() if line.strip()]
    # Three bits of a class number at a time, the lowest ones in the highest of r, g and b.
    colours: dict[Value, str] = {
        tuple(
            sum((index >> (3 * place + channel) & 1) << (7 - place) for place in range(8))
            for channel in range(3)
        ): name
        for index, name in enumerate(classes)
    }
    return _voc_folders(source, images, colours)


def cvat(source: Path, images: Path | None) -> Found:
    """CVAT's "segmentation mask": VOC's folders, and labelmap.txt with name:r,g,b:: per line."""
    listing = source / "labelmap.txt"
    colours: dict[Value, str] = {}
    for number, line in enumerate(read_text(listing).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        parts = rest.partition(":")[0].split(",")
        if len(parts) != 3 or not all(p.strip().isdecimal() and int(p) < 256 for p in parts):
            raise ValueError(f"{listing}, line {number}: no name:r,g,b:: in {line!r}.")
        colour = tuple(map(int, parts))
        if colour in colours:
            raise ValueError(f"{listing}, line {number}: {colours[colour]} has this colour, too.")
        colours[colour] = name.strip()
    return _voc_folders(source, images, colours)


def _voc_folders(source: Path, images: Path | None, colours: Mapping[Value, str]) -> Found:
    values = {**colours, _VOC_BORDER: colours.get(_VOC_BORDER)}
    return _masks(source / "SegmentationClass", images or source / "JPEGImages", values)


def roboflow(source: Path, images: Path | None) -> Found:
    """Roboflow's "semantic mask": x.jpg, x_mask.png, and _classes.csv with values and names."""
    listing = source / "_classes.csv"
    rows = list(csv.reader(io.StringIO(read_text(listing))))[1:]
    values: dict[Value, str] = {(int(row[0]),): row[1].strip() for row in rows if row}
    return _masks(source, images or source, values, "_mask.png")


def datumaro(source: Path, images: Path | None) -> Found:
    """Datumaro's images/, masks/ and dataset_meta.json."""
    meta = read_json(source / "dataset_meta.json")
    names = meta["label_map"]
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    values = meta.get("segmentation_colors") or [[index] for index in range(len(names))]
    table = dict(zip(map(tuple, values), names, strict=True))
    return _masks(source / "masks", images or source / "images", table)


def _masks(
    folder: Path, images: Path, values: Mapping[Value, str | None], suffix: str = ".png"
) -> Found:
    """Label pictures in which every value (grey, or a colour) is one class; None is ignored."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of labels")
    named = [name for name in values.values() if name is not None]
    classes = sorted(named, key=lambda name: name.lower() not in _BACKGROUNDS)
    ids = {name: index for index, name in enumerate(classes)}
    pairs = tuple((v, WIDE_IGNORED if n is None else ids[n]) for v, n in values.items())
    rules = LabelRules(default_ignored=False, values=pairs, others_shifted=False)
    stems = [path.name.removesuffix(suffix) for path in listed(folder, f"*{suffix}")]
    there: dict[str, str] = {}
    for path in listed(images, "*"):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.endswith("_mask.png"):
            there.setdefault(path.stem, path.name)
    if missing := [stem for stem in stems if stem not in there]:
        raise FileNotFoundError(
            f"{len(missing)} of {len(stems)} labels have no image in {images}, for example "
            f"{missing[0]}. Name the folder with --images."
        )

    def label(path: Path) -> Labels:
        pixels = read_labels(path, rules.colours)
        labels, unknown = rules.class_ids(pixels, len(classes))
        return labels, np.unique(pixels[unknown], axis=0).tolist()

    labels = [(there[stem], partial(label, folder / f"{stem}{suffix}")) for stem in stems]
    return Found(classes, images, list(labels))


def _categories(content: Any) -> tuple[list[str], dict[Any, int]]:
    """COCO's names in the order of their ids, and id -> place."""
    entries = sorted(content["categories"], key=lambda entry: entry["id"])
    check_once([entry["id"] for entry in entries], "categories: id")
    return [str(e["name"]) for e in entries], {e["id"]: n for n, e in enumerate(entries)}


def _inside(name: str, source: Path) -> str:
    """A file name of a JSON file, which must not lead out of its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"{source}: {name!r} is no file below a folder of images.")
    return str(path)


def _image_folder(source: Path, labels: Named, images: Path | None) -> Path:
    """Where the images of a COCO file are: COCO's own places are tried."""
    split, above = source.stem.rpartition("_")[2], (source.parent, source.parent.parent)
    parts = (split, f"images/{split}", "images", ".")
    places = [images] if images else [root / part for root in above for part in parts]
    name = labels[0][0] if labels else "no image"
    for place in places:
        if (place / name).is_file():
            return place
    raise FileNotFoundError(
        f"{name} of {source} is in none of "
        f"{', '.join(map(str, places))}. Name the folder with --images."
    )


FORMATS: dict[str, Callable[[Path, Path | None], Found]] = {
    "coco-panoptic": coco_panoptic,
    "coco-instances": coco_instances,
    "voc-colour": voc_colour,
    "cvat": cvat,
    "roboflow": roboflow,
    "datumaro": datumaro,
}
"""Name -> function of (source, folder of images or None)."""
