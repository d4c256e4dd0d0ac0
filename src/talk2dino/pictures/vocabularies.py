"""Class lists that the demo knows by name, with the colours of their data sets."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from talk2dino.config import as_texts
from talk2dino.pictures.drawing import class_colours
from talk2dino.pictures.word_lists import BACKGROUND, WordLists, read_word_lists


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What is looked for; the background does not count."""

    names: tuple[str, ...]
    """Class names; those of a data set are MMSegmentation's."""
    colours: np.ndarray
    """(C, 3) uint8 RGB, one per name."""
    benchmark: str | None = None
    """Key of the benchmark that the names are of; methods may have other names for it."""
    lists: WordLists | None = None
    """Of a text file: the words of every class."""


def find_vocabulary(words: Sequence[str]) -> Vocabulary:
    """A known class list, or the given names as they are, in the colours of ADE20K's classes.

    Args:
        words: one of VOCABULARIES alone; or a text file (.txt) alone, see `read_word_lists`; or
            class names, which may hold anything. A first `background` is left out.

    Raises:
        ValueError: an empty or repeated name, none at all, or a single word that looks like the
            name of a class list but is none.
        FileNotFoundError: the text file is not there.
    """
    words = as_texts(words)
    if len(words) == 1 and words[0] in VOCABULARIES:
        benchmark, names, colours = VOCABULARIES[words[0]]
        return Vocabulary(tuple(names.split(", ")), _colours(colours), benchmark)
    if len(words) == 1 and Path(words[0]).suffix.lower() == ".txt":
        lists = read_word_lists(words[0])
        return replace(named_classes(lists.names), lists=lists)
    if len(words) == 1 and _looks_like_a_list(words[0]):
        raise ValueError(
            f"unknown vocabulary {words[0]!r}. Known: {', '.join(VOCABULARIES)}, or class names. "
            f"For a single class of this name: --textual_categories {words[0]!r}"
        )
    return named_classes(words)


def named_classes(words: Sequence[str]) -> Vocabulary:
    """Class names as they are given; a first `background` is left out.

    Raises:
        ValueError: see `class_names`.
    """
    words = as_texts(words)
    first = words[:1] and words[0].strip().lower() == BACKGROUND
    names = class_names(words[1:] if first else words, background=True)
    ade = _colours(_ADE_COLOURS)
    colours = ade[: len(names)] if len(names) <= len(ade) else class_colours(len(names))
    return Vocabulary(tuple(names), colours)


def class_names(names: str | Sequence[str], background: bool) -> list[str]:
    """Names of classes without needless spaces.

    Args:
        names: one or several.
        background: whether there is one, so that no class may be called so.

    Raises:
        ValueError: none at all, an empty or repeated one, or that of the background.
    """
    found = [" ".join(name.split()) for name in as_texts(names)]
    if not any(found):
        raise ValueError("no class names given. At least one is needed.")
    seen: set[str] = set()
    for place, name in enumerate(found, start=1):
        if not name:
            raise ValueError(f"class name number {place} is empty. Leave it out.")
        if name.lower() in seen:  # CLIP reads lower case only
            raise ValueError(
                f"the class name {name!r} is there twice. Every class may appear once."
            )
        if background and name.lower() == BACKGROUND:
            raise ValueError("'background' is added by itself. Leave it out.")
        seen.add(name.lower())
    return found


def group_colours(count: int) -> np.ndarray:
    """Colours (count, 3) uint8 RGB of group tokens, the published ones, repeated after 209."""
    voc, ade = _colours(_VOC_COLOURS), _colours(_ADE_COLOURS)
    rows = np.concatenate([_colours(_CITYSCAPES_COLOURS), voc, ade[:25], voc, ade[25:]])
    bgr = rows[:, ::-1]  # the published file was read with its channels reversed
    return bgr[np.arange(count) % len(bgr)]


def _looks_like_a_list(word: str) -> bool:
    key = word.lower()
    return key in _OTHER_LISTS or bool(difflib.get_close_matches(key, VOCABULARIES, cutoff=0.65))


def _colours(digits: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(digits), dtype=np.uint8).reshape(-1, 3)


_VOC = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, "
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
)

_COCO = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire "
    "hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, "
    "zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports "
    "ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine "
    "glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot "
    "dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, "
    "clock, vase, scissors, teddy bear, hair drier, toothbrush"
)

_ADE = (
    "wall, building, sky, floor, tree, ceiling, road, bed , windowpane, grass, cabinet, sidewalk, "
    "person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, "
    "shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, "
    "bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, "
    "sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool "
    "table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, "
    "flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, "
    "boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, "
    "streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, "
    "bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer "
    "belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, "
    "minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, "
    "lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, "
    "ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, "
    "clock, flag"
)

_COCO_COLOURS = (
    "00c04000c04000406080c0c000404000c0e000c0c080c04000c06080c0408020c00000e000004000a0c0800060"
    "8000c00020c08080e00000c080a0c080800080002080200080008040802000a000000000c080a0002000008080"
    "4080a080a000008000c0802080608000008040002000e080800000c000a00060808080804000a080e080808040"
    "c000208060008000c000802040e0000000408080a04060000080c00080a0c0e000008040808020c020800040c0"
    "00002040a0808040408000a040208080c0c00000a0c0a08080c000800060c0200080408040806040a000004000"
    "c080e040200000c0804080e0c0a000"
)

_ADE_COLOURS = (
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33"
    "ff06528fff8cccff04ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff"
    "08ffd607ffe0ffb8060aff47ff290a07ffffe0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ff"
    "eb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe00099ff000000ffff470000ebff00adff1f00ff"
    "0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff000052ff00ff2900ffad"
    "0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
    "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa"
    "8500ff00ff5cb800ffff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3"
    "ffcc00ff008f00ffeb85ff00ff00ebf500ffff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff"
    "00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cffb8ff000085ffffd60019c2c266ff005c00ff"
)

_CITYSCAPES_COLOURS = (
    "804080f423e846464666669cbe9999999999faaa1edcdc006b8e2398fb984682b4dc143cff000000008e000046"
    "003c640050640000e6770b20"
)

# Bits of the class number, the highest ones first, spread over the three channels.
_VOC_COLOURS = "".join(
    f"{128 * (k & 1) + 64 * (k >> 3 & 1):02x}"
    f"{128 * (k >> 1 & 1) + 64 * (k >> 4 & 1):02x}"
    f"{128 * (k >> 2 & 1):02x}"
    for k in range(1, 21)
)

VOCABULARIES = {
    "voc": ("voc", _VOC, _VOC_COLOURS),
    "coco": ("coco_object", _COCO, _COCO_COLOURS),
    "ade": ("ade20k", _ADE, _ADE_COLOURS),
}
"""Name -> benchmark, class names, and colours in hexadecimal digits."""

_OTHER_LISTS = ("pascal", "context", "cityscapes", "stuff", "ade20k", "coco_object", "coco_stuff")
