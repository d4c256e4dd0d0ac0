"""One request to the page: the models on offer, what a visitor gives, and the result.

The words and the picture are checked before a model sees them; the work is done in steps between
which it can stop.
"""

import dataclasses
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from talk2dino.config import check_at_least, check_name, split_names
from talk2dino.files import find_in_checkout
from talk2dino.inference import score_labels
from talk2dino.methods.base import Method, PictureRules
from talk2dino.methods.registry import MODEL_NAMES, find_method, method_class
from talk2dino.pictures.images import check_image, read_rgb
from talk2dino.pictures.segmentation import Segmentation
from talk2dino.pictures.vocabularies import Vocabulary, read_word_lists
from talk2dino.predict import class_threshold, draw_groups, segment_picture
from talk2dino.refine.refinement import chosen_refinements
from talk2dino.segmenter import BACKGROUND, POOLINGS, Segmenter
from talk2dino.sizes import scoring_size
from talk2dino.toy.scene import CLASS_NAMES

MAX_NAME = 80
"""Characters in one category name."""
UNTRAINED = (
    "“{}” has random, untrained weights: everything works as with a real model, but the colours "
    "mean nothing."
)
DRAWN_WORLD = "“{}” has seen nothing but drawn pictures of {}."


@dataclass(eq=False)
class Entry:
    """A model that can be chosen."""

    name: str
    """As shown to visitors."""
    find: Callable[[], Method]
    """Gives it with its options; a published model is downloaded for that, once."""
    rules: PictureRules
    """What the page offers with it."""
    notice: str = ""
    """What a visitor must know to read the result."""
    segmenter: Segmenter | None = None
    """Once it is loaded."""


def find_entry(name: str) -> Entry:
    """A model of any method; a published one is not downloaded yet.

    Args:
        name: what `registry.find_method` takes, or `<name or recipe>=<folder, file or seeded:<n>>`.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: there is no such model, or its weights are
            missing or damaged.
    """
    model, settings = name, {}
    if "=" in name and not Path(name).exists():
        model, _, settings["weights"] = name.partition("=")
        if not find_in_checkout(model).is_file():  # a recipe
            check_name("model with weights (<name>=<weights>)", model, MODEL_NAMES)

    @cache
    def find() -> Method:
        method = find_method(model, settings).for_pictures(False)
        method.check()
        return method

    rules = None if settings else method_class(model).remote(model)
    if rules is not None:
        return Entry(name, find, rules)
    method = find()
    notice = UNTRAINED.format(name) if method.untrained else ""
    if method.toy and not notice:
        notice = DRAWN_WORLD.format(name, ", ".join(CLASS_NAMES))
    return Entry(name, find, method.demo, notice)


class Models:
    """The entries by name, and the device on which they run.

    Args:
        entries: the first one is chosen when the page opens.
        device: of all.
    """

    def __init__(self, entries: Sequence[Entry], device: torch.device) -> None:
        self.entries = {entry.name: entry for entry in entries}
        if len(self.entries) < len(entries):
            raise ValueError(f"a model is offered twice: {', '.join(e.name for e in entries)}.")
        self.device = device
        self._lock = threading.Lock()

    def entry(self, name: str) -> Entry:
        """The entry of that name; ValueError if it is not offered."""
        if name not in self.entries:
            raise ValueError(f"There is no model “{name}” here, only {', '.join(self.entries)}.")
        return self.entries[name]

    @contextmanager
    def use(self, name: str) -> Iterator[Entry]:
        """A loaded model for one request alone: reading attention hooks into it.

        The queue gives one turn at a time, but a step that was stopped goes on to its end while
        the next request has its turn already.

        Raises:
            ValueError, OSError, RuntimeError: it is not offered, or cannot be loaded.
        """
        entry = self.entry(name)
        with self._lock:
            if entry.segmenter is None:
                entry.segmenter = entry.find().load(self.device)
            yield entry


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_pixels: int = 50_000_000
    """Of a picture; larger ones are refused before they are decoded."""
    max_side: int = 1024
    """Long side in pixels at which larger pictures are segmented and shown."""
    max_categories: int = 64
    """Names in one request."""

    def __post_init__(self) -> None:
        check_at_least(1, **{f"--{flag}": value for flag, value in vars(self).items()})
        if self.max_categories > 255:
            raise ValueError(
                f"--max_categories must be at most 255, got {self.max_categories}: "
                "an indexed PNG holds 256 labels, the background included."
            )


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded upload."""

    image: Image.Image
    """RGB, at the size at which it is scored."""
    full_hw: tuple[int, int]
    """Height and width of the upload, upright."""
    stem: str
    """Start of the names of the files to download."""


def read_names(text: str | None, background: bool, limits: Limits) -> Vocabulary:
    """Category names from free text: commas or lines separate them, underscores mean spaces.

    Empty parts and repetitions (case does not count: CLIP reads lower case) are left out. Where
    there is a `;`, every part is a line of a vocabulary, `name; alias`: see `read_word_lists`.

    Raises:
        ValueError: none, too many, a very long one, or one called like the background.
    """
    names: dict[str, str] = {}
    for part in split_names((text or "").replace("\n", ",")):
        visible = "".join(c if c.isprintable() else " " for c in part.replace("_", " "))
        name = " ".join(visible.split())
        if name:
            names.setdefault(name.lower(), name)
    if not names:
        raise ValueError("Name at least one category, for example: cat, sofa, window.")
    if len(names) > limits.max_categories:
        raise ValueError(
            f"{len(names)} categories are too many for one request; at most "
            f"{limits.max_categories} are taken. Remove some."
        )
    words = [word.strip() for name in names.values() for word in name.split(";")]
    long = [word for word in words if len(word) > MAX_NAME]
    if long:
        raise ValueError(
            f"“{long[0][:30]}…” has {len(long[0])} characters; a category may have {MAX_NAME}. "
            "Are the commas missing?"
        )
    if background and BACKGROUND in names:
        raise ValueError(
            "“background” is added by the switch of that name. Remove the word, or switch it off."
        )
    if not any(";" in name for name in names.values()):
        return Vocabulary(tuple(names.values()))
    found = read_word_lists(list(names.values()))
    if found.background and not background:
        raise ValueError("These are words of the background. Switch it on, or remove that line.")
    return found


def read_picture(payload: Mapping[str, Any] | None, limits: Limits) -> Picture:
    """Decode an upload at the size at which it will be scored.

    Gradio checks of what is marked as a file that it is an upload; it lets other paths pass, so
    that the page's endpoints would read any picture of the server. Here the folder is checked.

    Args:
        payload: what the page sends: where the server keeps the file, and what its visitor calls
            it, which is never used as a path.
        limits: of the request.

    Raises:
        ValueError: nothing given, no upload, no image, damaged, or more than `limits.max_pixels`.
    """
    from gradio.utils import get_upload_folder

    if not payload or not payload.get("path"):
        raise ValueError("Choose a picture first: upload one, paste one, or take an example.")
    path, folder = Path(payload["path"]).resolve(), Path(get_upload_folder()).resolve()
    if not path.is_relative_to(folder):
        raise ValueError("This picture was not uploaded. Choose it again.")
    name = payload.get("orig_name") or path.name
    try:
        height, width = check_image(path)
        if height * width > limits.max_pixels:
            raise ValueError(
                f"{name} has {width} × {height} pixels ({height * width / 1e6:.3g} megapixels); at "
                f"most {limits.max_pixels / 1e6:.3g} megapixels are taken. Make it smaller first."
            )
        image = read_rgb(path)
    except FileNotFoundError as error:
        raise ValueError(f"{name} is no longer on the server. Upload it again.") from error
    except (ValueError, OSError) as error:  # the visitor's name for it, not the server's path
        raise ValueError(str(error).replace(str(path), name)) from error
    full_hw = (image.height, image.width)
    height, width = scoring_size(*full_hw, limits.max_side)
    if (height, width) != full_hw:
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(name).stem)
    return Picture(image, full_hw, stem.strip("_")[:40] or "picture")


@dataclass(eq=False)
class Result:
    """One segmented picture; everything that is shown or downloaded is made from it."""

    picture: Picture
    segmentation: Segmentation | None
    """What was found, at the threshold of the request; None once it has made room for others."""
    model: str
    """Its name."""
    rules: PictureRules
    text: str = ""
    """A sentence about it for the visitor."""
    groups: Sequence[Image.Image] = ()
    """One picture of the model's groups for each of its stages, if it has any."""
    folder: Path = field(init=False)
    """Where its files are; removed when nobody keeps the result any more."""

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def at(self, threshold: float | None) -> Segmentation:
        """The same scores with another threshold of the background, if there is one.

        Some methods have to score the picture again for that; then the threshold stays.

        Raises:
            ValueError: the result has made room, or the threshold is no number from 0 to 1.
        """
        found = self.segmentation
        if found is None:
            raise ValueError(
                "This result is no longer kept: others came after it. Press Segment again."
            )
        if threshold is None or found.background is None or not self.rules.redraws:
            return found
        threshold = class_threshold(threshold, 0.0)
        if threshold in (None, found.background):
            return found
        scores = torch.cat([torch.full_like(found.scores[:1], threshold), found.scores[1:]])
        return dataclasses.replace(
            found, scores=scores, labels=score_labels(scores), background=threshold
        )


class Results:
    """Bounds the memory of all visitors' results; each visitor's session keeps its own.

    Args:
        max_bytes: for scores; the oldest results make room, the newest is always kept.
    """

    def __init__(self, max_bytes: int = 2**30) -> None:
        self._max_bytes = max_bytes
        self._kept: list[weakref.ref[Result]] = []
        self._lock = threading.Lock()

    def add(self, result: Result) -> None:
        with self._lock:
            kept, taken = [result, *(old for ref in self._kept if (old := ref()))], 0
            for one in kept:  # the newest first
                if (found := one.segmentation) is not None:
                    taken += found.scores.nbytes + found.labels.nbytes
                    if taken > self._max_bytes and one is not result:
                        one.segmentation = None
            self._kept = [weakref.ref(one) for one in kept]


def segment(
    models: Models,
    limits: Limits,
    upload: Mapping[str, Any] | None,
    categories: str | None,
    model: str,
    background: bool = False,
    threshold: float | None = None,
    refine: Sequence[str] | None = None,
    pooling: str = POOLINGS[0],
) -> Iterator[str | Result]:
    """Yield sentences about what is being done, and at last the result.

    Args:
        models: on offer.
        limits: of a request.
        upload: see `read_picture`. This and what follows is what a visitor asks for, unchecked.
        categories: free text; see `read_names`.
        model: one of those on offer.
        background: whether pixels may belong to no category.
        threshold: of the background; None for the model's own.
        refine: names of refinements; None for the model's own.
        pooling: how several words of a category are put together.

    Raises:
        ValueError: wrong input, said in words for the visitor.
        OSError, RuntimeError, MemoryError: the model cannot be loaded, or runs out of memory.
    """
    started = time.perf_counter()
    entry = models.entry(model)
    own = entry.rules.threshold
    wanted = class_threshold(own if threshold is None else threshold, own)
    vocabulary = read_names(categories, background, limits)
    names = vocabulary.names
    check_name("pooling", pooling, POOLINGS)
    chosen = None if refine is None else chosen_refinements(refine)
    picture = read_picture(upload, limits)
    if entry.segmenter is None:
        yield f"Loading {model}; this happens once."
    with models.use(model):
        pass
    yield f"Looking for {f'{len(names)} categories' if len(names) > 1 else names[0]} …"
    with models.use(model) as entry:
        method = entry.find().for_pictures(background)
        method = method if chosen is None else method.refined(chosen)
        segmenter, rules = method.load(models.device, entry.segmenter), method.demo
        words = vocabulary.class_words(method.words(), pooling)
        query = words.asked_of(segmenter, names, wanted if background else None)
        settings = {"model": model, "refine": list(rules.refines or ()), "image": picture.stem}
        found = segment_picture(segmenter, picture.image, query, rules.protocol, settings=settings)
        groups = draw_groups(segmenter, picture.image, models.device)
    seconds = time.perf_counter() - started
    yield Result(picture, found, model, rules, _summary(len(names), picture, seconds), groups)


def _summary(count: int, picture: Picture, seconds: float) -> str:
    text = f"{count} {'category' if count == 1 else 'categories'} in {seconds:.1f} s"
    height, width = picture.full_hw
    if (width, height) == picture.image.size:
        return f"{text}, {width} × {height} pixels."
    return (
        f"{text}. The picture has {width} × {height} pixels and was segmented at "
        f"{picture.image.width} × {picture.image.height}; the mask has its full size."
    )
