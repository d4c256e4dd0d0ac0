"""One way from a picture and words to a segmentation: Python, the commands and the page use it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from talk2dino.benchmarks.scoring import Batching, Picture, Task, label_pictures
from talk2dino.inference import picture_scores, resize_picture, resize_scores, score_labels
from talk2dino.pictures.drawing import blend, group_colours
from talk2dino.pictures.images import ImageInput, as_rgb, rgb_tensor
from talk2dino.pictures.segmentation import Segmentation
from talk2dino.pictures.vocabularies import class_names
from talk2dino.segmenter import ClassQuery, Grouping, Segmenter
from talk2dino.sizes import Protocol, scoring_size


@torch.inference_mode()
def segment_picture(
    segmenter: Segmenter,
    image: Image.Image,
    query: ClassQuery,
    protocol: Protocol,
    max_side: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Segmentation:
    """Find the best of the queried classes for every pixel.

    Args:
        segmenter: any method.
        image: RGB.
        query: from `segmenter.query`.
        protocol: size and windows; `sizes.WHOLE` is the picture as one window.
        max_side: score a larger picture at this long side in pixels; the result has its own size.
        settings: what made it, for the result.
    """
    size = scoring_size(image.height, image.width, max_side)
    pixels = resize_picture(rgb_tensor(image), size).contiguous()
    scores = picture_scores(segmenter, pixels, query, protocol).float()
    scores = resize_scores(scores, (image.height, image.width))
    labels = score_labels(scores).cpu()
    return Segmentation(image, labels, scores.cpu(), query.names, query.background, settings or {})


@torch.inference_mode()
def draw_groups(
    segmenter: Segmenter, image: Image.Image, device: torch.device
) -> list[Image.Image]:
    """One picture per stage of grouping: half the image, half the colours of its groups.

    Args:
        segmenter: any method; one without groups has no such picture.
        image: RGB; it is grouped as a whole, in one window of a benchmark's size.
        device: where the segmenter is.
    """
    if not isinstance(segmenter, Grouping):
        return []
    size_hw = (image.height, image.width)
    window = resize_picture(rgb_tensor(image), Protocol().scored_size(*size_hw))[None]
    pictures, first = [], 0
    for maps in segmenter.group_maps(window.to(device, torch.float32)):
        colours = group_colours(first + maps.shape[1])[first:]
        first += maps.shape[1]
        labels = score_labels(resize_scores(maps[0], size_hw))
        pictures.append(Image.fromarray(blend(np.asarray(image), colours[labels.cpu().numpy()])))
    return pictures


def label_map(segmenter: Segmenter, image_rgb: np.ndarray, query: ClassQuery) -> np.ndarray:
    """Segment an image as `evaluate` does: resize, windows, averaging, finalising, argmax.

    Args:
        segmenter: from `load_segmenter`, which sets its protocol.
        image_rgb: (H, W, 3) uint8 RGB.
        query: from `segmenter.query`.

    Returns:
        (H, W) int64: per pixel the index into `query.names`.

    Raises:
        ValueError: an image of another form.
    """
    pixels = np.asarray(image_rgb)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"an image is (H, W, 3) uint8 RGB, found {pixels.shape} {pixels.dtype}.")
    protocol: Protocol = getattr(segmenter, "protocol", None) or Protocol()
    size_hw = (pixels.shape[0], pixels.shape[1])
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    image = resize_picture(image, protocol.scored_size(*size_hw))
    picture = Picture(image, size_hw, [Task(segmenter, query)])
    ((_, maps),) = label_pictures([picture], protocol, Batching(), query.rows.device)
    labels: np.ndarray = maps[0].cpu().numpy()
    return labels


@dataclass(frozen=True)
class Model:
    """A model of any method; `talk2dino.load_model` makes it."""

    segmenter: Segmenter
    with_background: Segmenter
    """The same with the method's options for pictures that have a background."""
    threshold: float
    """Of the background, that `background=True` stands for."""
    name: str

    def segment(
        self,
        image: ImageInput,
        words: str | Sequence[str],
        background: bool | float = False,
        *,
        max_side: int | None = None,
    ) -> Segmentation:
        """Find the best of the named classes for every pixel.

        Args:
            image: a path, a PIL image, an (H, W, 3) uint8 array or a (3, H, W) uint8 tensor; RGB.
            words: class names.
            background: whether pixels may belong to no class; a number is the threshold.
            max_side: score larger pictures at this long side in pixels.

        Raises:
            ValueError: no names, an empty or repeated one; an image that cannot be read.
            FileNotFoundError: a path that is not there.
        """
        threshold = class_threshold(background, self.threshold)
        names = class_names(words, threshold is not None)
        segmenter = self.segmenter if threshold is None else self.with_background
        query = segmenter.query(names, threshold)
        protocol = getattr(segmenter, "protocol", None) or Protocol()
        settings = {"model": self.name}
        return segment_picture(segmenter, as_rgb(image), query, protocol, max_side, settings)


def class_threshold(background: bool | float, own: float) -> float | None:
    """The threshold that is meant by true, false or a number.

    Raises:
        ValueError: something else, or a number outside 0 to 1.
    """
    number: object = background  # what callers give is not what the signature promises
    if isinstance(number, bool | np.bool_):
        if not number:
            return None
        number = own
    if not isinstance(number, int | float | np.number) or not 0 <= number <= 1:
        raise ValueError(
            f"background is true, false or a threshold between 0 and 1, found {number!r}."
        )
    return float(number)
