"""What every method has: a model with its options chosen but not loaded, and sensible defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch

from talk2dino.backbones.seeded import PREFIX, PRETRAINED, default_weights
from talk2dino.benchmarks.table import BENCHMARKS, Benchmark
from talk2dino.config import check_name
from talk2dino.files import content_digest
from talk2dino.refine.refinement import REFINEMENTS
from talk2dino.segmenter import ClassWords, Segmenter
from talk2dino.sizes import WHOLE, Protocol, Sizes


@dataclass(frozen=True)
class MethodOptions:
    """Choices beside a model's name; a method's own class has its own. They become flags."""

    weights: str | None = None
    """A file, a folder, or seeded:<n>; None for the published ones."""

    def given(self) -> dict[str, Any]:
        """The choices that were made."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return {n: v for n, v in values.items() if v != type(self).__dataclass_fields__[n].default}


@dataclass(frozen=True)
class PictureRules:
    """How a method segments pictures that belong to no benchmark."""

    threshold: float
    """Of the background."""
    always_background: bool = False
    """Whether there is a background unless it is refused."""
    protocol: Protocol = WHOLE
    """Size and windows; the default is the picture as one window."""
    groups: bool = False
    """Whether there are group maps to show."""
    refines: tuple[str, ...] | None = None
    """Names of the refinements that are on; None: the method has no refinement."""
    redraws: bool = False
    """Whether scores can be given another threshold: the background's are the threshold itself."""
    thresholds: tuple[float, float] = (0.0, 1.0)
    """Between which ones are worth trying."""
    scores: str = "class scores"
    """What the scores are."""


@dataclass(frozen=True)
class Published:
    """Numbers of a model that were printed."""

    miou: Mapping[str, float]
    """By key of a benchmark, in percent."""
    source: str = ""
    """Who printed them."""


PAPERS_TABLE = (
    *("voc", "context", "coco_object"),
    *("voc20", "context59", "coco_stuff", "cityscapes", "ade20k"),
)
"""The benchmarks of papers, those with a background first."""


def published(source: str, *miou: float) -> Published:
    """The numbers of all of PAPERS_TABLE, or of the last so many."""
    return Published(dict(zip(PAPERS_TABLE[-len(miou) :], miou, strict=True)), source)


@dataclass(frozen=True)
class Method:
    """A model with its options, not loaded. Two of them that are equal score alike.

    A method of the registry is a subclass with `load`, `demo` and, where it has more than weights
    to choose, `Options`; the rest has defaults. See docs/extending.md.
    """

    model: str
    """What results call it: its name in the registry, or the stem of a file."""
    options: Any
    """What was chosen: one of its `Options`."""

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    """The class of its options: flags of the commands, settings of `load_segmenter`."""
    PUBLISHED: ClassVar[Mapping[str, Published]] = {}
    """Name of a model, or `<name>_pamr` of it with PAMR -> its numbers."""
    threshold_meaning: ClassVar[str] = "the scores of the classes"
    """What a background threshold is compared with, for messages."""

    @classmethod
    def from_options(cls, name: str, options: MethodOptions) -> Method:
        """The model of a name with its options; nothing is loaded."""
        return cls(name, options)

    @classmethod
    def claims(cls, place: str) -> bool:
        """Whether a file, folder or repository is a model of this method.

        Raises:
            ValueError: it is, but has to be named differently.
        """
        return False

    @classmethod
    def remote(cls, name: str) -> PictureRules | None:
        """The rules of a published model that is not downloaded yet; None for others."""
        return None

    @property
    def demo(self) -> PictureRules:
        """Its rules for a user's pictures."""
        raise NotImplementedError

    @property
    def weights(self) -> str:
        """A file, a folder, `pretrained`, or `seeded:<n>`, as for a toy by default."""
        return self.options.weights or (f"{PREFIX}0" if self.toy else PRETRAINED)

    @property
    def untrained(self) -> bool:
        """Whether its weights are random."""
        return self.weights.startswith(PREFIX)

    @property
    def toy(self) -> bool:
        """Whether it has seen nothing but drawn pictures."""
        return "toy" in self.model.split("_")

    @property
    def published_on(self) -> Sequence[Benchmark]:
        """The benchmarks that `all` means."""
        return [self.benchmark(row) for row in BENCHMARKS.values()]

    @property
    def refines(self) -> bool:
        """Whether scores are refined with PAMR."""
        return False

    @property
    def published(self) -> Published:
        """What was printed of it with these options."""
        name = f"{self.model}_pamr" if self.refines else self.model
        return self.PUBLISHED.get(name, Published({}))

    def published_miou(self, row: Benchmark) -> float | None:
        """The printed mIoU in percent; None where there is none."""
        return self.published.miou.get(row.key)

    def benchmark(self, row: Benchmark) -> Benchmark:
        """The row that this method is evaluated on where `row` is asked for, with its protocol."""
        return row

    def on(self, row: Benchmark) -> Method:
        """The method with the options of inference that its publication uses on a benchmark."""
        return self

    def for_pictures(self, background: bool) -> Method:
        """The method with the options of inference for pictures that belong to no benchmark."""
        return self

    @property
    def patch_size(self) -> int:
        """Side of its backbone's patches in pixels: no window is smaller."""
        return 1

    def for_windows(self, side: int) -> Method:
        """The method for windows of so many pixels; most take any."""
        return self

    def refined(self, names: Collection[str]) -> Method:
        """The method with these refinements and no others; itself if it has none."""
        switches: dict[str, Any] = {n: n in names for n in REFINEMENTS if hasattr(self.options, n)}
        return dataclasses.replace(self, options=dataclasses.replace(self.options, **switches))

    def threshold(self, row: Benchmark) -> float | None:
        """Its background threshold on a benchmark; None where that has no background."""
        return self.demo.threshold if row.background else None

    def words(self, row: Benchmark | None = None) -> ClassWords:
        """By which words it looks for the classes of a benchmark, or of a user's picture."""
        own = self.class_words(row.key if row else None)
        return own if row is None else row.class_words(own)

    def class_words(self, benchmark: str | None) -> ClassWords:
        """Its own words for a benchmark's classes, by its key, or for those of a user."""
        return ClassWords()

    def check(self) -> None:
        """Raise for unknown names and missing files; loads nothing.

        Raises:
            ValueError, FileNotFoundError: what is wrong, and what to do.
        """

    def settings(self) -> dict[str, Any]:
        """All that decides its scores, as plain JSON data; weights by their content."""
        return {"model": self.model, "weights": content_digest(self.weights)}

    def text_settings(self) -> dict[str, Any]:
        """The part of `settings` that decides the rows of classes."""
        return self.settings()

    def changes(self, row: Benchmark, names: Sequence[str]) -> list[str]:
        """In what its protocol differs from its publication's on a benchmark with these classes."""
        return []

    def remarks(self, row: Benchmark) -> list[str]:
        """What to know before its numbers on a benchmark are compared."""
        known = [published.key for published in self.published_on]
        if row.key not in BENCHMARKS or row.key in known or self.published_miou(row) is not None:
            return []
        return [f"nothing is published of {self.model} on {row.key}"]

    def describe(self) -> tuple[str, list[str]]:
        """What is loaded, in words, and notes on what is odd about it."""
        note = "this model is untrained; the colours will mean nothing"
        return self.model, [note] if self.untrained else []

    def load(self, device: torch.device, loaded: Segmenter | None = None) -> Segmenter:
        """Load the weights.

        Args:
            device: where to put them.
            loaded: what `load` of an equally named model returned, whose weights are used again.
        """
        raise NotImplementedError


Parts = tuple[tuple[str, Callable[[str, str], None]], ...]
"""Per part, the option that says where its weights are, and what refuses a name or weights."""


@dataclass(frozen=True)
class ComposedMethod(Method):
    """A method of frozen parts that have weights each, but for `load_parts` and `choices`."""

    key: str | None = None
    """Of the benchmark whose rules are used; None for a user's pictures."""

    SEGMENTER: ClassVar[Any]
    """The class of its segmenter, which takes the parts, then `choices`."""
    PARTS: ClassVar[Parts]
    MODELS: ClassVar[Mapping[str, tuple[str, ...]]]
    """Name of a model -> those of its parts, in the order of PARTS."""

    @property
    def parts(self) -> dict[str, tuple[str, str]]:
        """Option -> name and weights of a part, which are random where those of the method are."""
        seeded = self.weights if self.untrained else None
        found = {}
        for (option, _), name in zip(self.PARTS, self.MODELS[self.model], strict=True):
            given = self.weights if option == "weights" else getattr(self.options, option)
            found[option] = (name, given or seeded or default_weights(name))
        return found

    def on(self, row: Benchmark) -> ComposedMethod:
        return dataclasses.replace(self, key=row.key)

    def check(self) -> None:
        for (_, check), part in zip(self.PARTS, self.parts.values(), strict=True):
            check(*part)

    def settings(self) -> dict[str, Any]:
        weights = {option: content_digest(place) for option, (_, place) in self.parts.items()}
        return {"model": self.model, **weights}

    def load_parts(self, device: torch.device) -> tuple[Any, ...]:
        """The parts with their weights, in the order in which the segmenter takes them."""
        raise NotImplementedError

    def choices(self) -> dict[str, Any]:
        """What the segmenter takes beside its parts."""
        raise NotImplementedError

    def load(self, device: torch.device, loaded: Any = None) -> Any:
        parts = self.load_parts(device) if loaded is None else loaded.parts
        return self.SEGMENTER(*parts, **self.choices())


NATIVE, UNIFIED = "native", "unified"
PROTOCOLS = {
    NATIVE: "each method's own sizes, words and thresholds",
    UNIFIED: "448 px, windows of 448 every 224, MMSegmentation's names, no thresholds",
}
"""How methods are compared."""
_WHY = "the backgrounds of methods are incomparable, so the unified protocol has none"


_WORDS = ClassWords(
    refusal=f"a background (threshold {{}}), but {_WHY}. Leave it out, or take the native protocol."
)


@dataclass(frozen=True)
class Adapted:
    """A method under another protocol or with other sizes than its own, or with both.

    What is not changed is the method's, but for its numbers.
    """

    native: Any
    """The method."""
    unified: bool
    """Whether its sizes and words are those that all share; templates and scoring stay its own."""
    sizes: Sizes
    """In place of its own, or of the shared ones."""

    published = Published({})
    published_miou, words = Method.published_miou, Method.words

    def __getattr__(self, name: str) -> Any:
        if name == "native":  # before it is set, as in a copy
            raise AttributeError(name)
        found = getattr(self.native, name)
        if name not in ("refined", "on", "for_pictures", "for_windows"):
            return found
        return lambda *given, **named: dataclasses.replace(self, native=found(*given, **named))

    @property
    def demo(self) -> PictureRules:
        """See `Method`, as all below."""
        rules = self.native.demo
        if self.unified:
            rules = dataclasses.replace(rules, protocol=Protocol(), always_background=False)
        return dataclasses.replace(rules, protocol=self.sizes.of(rules.protocol))

    @property
    def published_on(self) -> Sequence[Benchmark]:
        """If it is unified, the benchmarks whose every pixel has a class."""
        without = [row for row in BENCHMARKS.values() if not row.background]
        return without if self.unified else self.native.published_on

    def benchmark(self, row: Benchmark) -> Benchmark:
        """The row with the sizes, but for those that the file of an own data set gives.

        Raises:
            ValueError: it has a background, and the protocol has none.
        """
        if self.unified and row.background:
            known = ", ".join(known.key for known in self.published_on)
            raise ValueError(
                f"{row.key} has a background, but {_WHY}. The unified protocol is for {known} and "
                "data sets of your own without `background: true`."
            )
        own = row.with_protocol(Protocol()) if self.unified else self.native.benchmark(row)
        return dataclasses.replace(own, protocol=self.sizes.of(own.protocol))

    def threshold(self, row: Benchmark) -> float | None:
        return None if self.unified else self.native.threshold(row)

    def class_words(self, benchmark: str | None) -> ClassWords:
        return _WORDS if self.unified else self.native.class_words(benchmark)

    def changes(self, row: Benchmark, names: Sequence[str]) -> list[str]:
        if not self.unified:
            return []
        own = self.native.benchmark(row)
        old, new = (dataclasses.asdict(found.protocol) for found in (own, row))
        of, now_of = self.native.words(own).of, row.class_words(_WORDS).of
        changes = [
            ("", row.key, own.key),
            *((f"{name.replace('_', ' ')} ", new[name], old[name] or "all") for name in new),
            *(("", ", ".join(now_of(name)), ", ".join(of(name))) for name in names),
        ]
        return [f"{what}{now} in place of {was}" for what, now, was in changes if now != was]

    def settings(self) -> dict[str, Any]:
        own = self.native.settings() | ({"protocol": UNIFIED} if self.unified else {})
        return own | ({"sizes": self.sizes.given()} if self.sizes.given() else {})


def adapted(method: Method, protocol: str, sizes: Sizes) -> Method:
    """The method under one of PROTOCOLS, with sizes, of which there may be none.

    Raises:
        ValueError: there is no such protocol, or a window is smaller than a patch of the method.
    """
    unified = check_name("protocol", protocol, PROTOCOLS) == UNIFIED
    if sizes.window is not None:
        if sizes.window < method.patch_size:
            raise ValueError(
                f"a window of {sizes.window} pixels is smaller than a patch of {method.model}, "
                f"which has {method.patch_size}. Choose a larger one."
            )
        method = method.for_windows(sizes.window)
    changed = unified or sizes.given()
    return cast(Method, Adapted(method, unified, sizes)) if changed else method
