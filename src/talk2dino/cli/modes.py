"""The eight pictures that the demo can draw of a segmentation, and the job that writes them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from talk2dino.inference import resize_pixels
from talk2dino.pictures.drawing import blend, drawn_name, indexed_mask, legend_font
from talk2dino.pictures.group_maps import draw_groups
from talk2dino.pictures.images import read_rgb
from talk2dino.pictures.segmentation import save_picture
from talk2dino.predict import segment_picture
from talk2dino.segmenter import ClassQuery, Segmenter
from talk2dino.sizes import Protocol

SUFFIXES = {
    "input": ".jpg",
    "pred": ".png",
    "input_pred": ".jpg",
    "input_pred_label": ".jpg",
    "mask": ".png",
    "all_groups": ".jpg",
    "first_group": ".jpg",
    "final_group": ".jpg",
}
"""Every mode, with what its files end with."""
GROUP_MODES = ("all_groups", "first_group", "final_group")

_LABEL_COLOUR = (255, 69, 0)
_LABEL_SIZE = 16


@dataclass(frozen=True, eq=False)
class ModesOptions:
    """What is the same for every picture."""

    names: Sequence[str]
    """Of the labels, the background first if there is one."""
    colours: np.ndarray
    """(C, 3) uint8 RGB of the labels."""
    query: ClassQuery
    """Embedded classes and the background's threshold."""
    protocol: Protocol
    """Size and windows."""
    record: str = ""
    """What made the files; stored in those that are PNG."""


class ModesJob:
    """Writes the wanted pictures of one image after the other.

    Args:
        segmenter: any method; group modes need one with groups.
        options: see there.
    """

    def __init__(self, segmenter: Segmenter, options: ModesOptions) -> None:
        self.segmenter = segmenter
        self.options = options

    def segment(self, source: Path, outputs: Mapping[str, Path]) -> str:
        """Write the files of one image; returns a line that says so.

        Args:
            source: the image.
            outputs: mode -> file; that of `all_groups` gets `_layer<i>` before its suffix.

        Raises:
            ValueError, OSError: the image cannot be read, or a file cannot be written.
        """
        started = time.perf_counter()
        image = np.asarray(read_rgb(source))
        pictures: dict[Path, Image.Image] = {}
        if any(mode in outputs for mode in GROUP_MODES):
            groups = draw_groups(self.segmenter, image, self.options.query.rows.device)
            for index, picture in enumerate(groups):
                if "all_groups" in outputs:
                    pictures[layer_path(outputs["all_groups"], index)] = picture
            for mode, picture in (("first_group", groups[0]), ("final_group", groups[-1])):
                if mode in outputs:
                    pictures[outputs[mode]] = picture
        if "input" in outputs:
            pictures[outputs["input"]] = Image.fromarray(self._seen(image))
        wanted = [mode for mode in outputs if mode not in (*GROUP_MODES, "input")]
        if wanted:
            labels = self._labels(image)
            pictures |= {outputs[mode]: self._draw(mode, image, labels) for mode in wanted}
        for path, picture in pictures.items():
            save_picture(picture, path, self.options.record)
        return f"{source} -> {len(pictures)} files ({time.perf_counter() - started:.1f} s)"

    def _labels(self, image: np.ndarray) -> np.ndarray:
        picture, options = Image.fromarray(image), self.options
        found = segment_picture(self.segmenter, picture, options.query, options.protocol)
        return found.labels.numpy()

    def _seen(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) the image as the model saw it, at its own size again."""
        size_hw = (image.shape[0], image.shape[1])
        small = resize_pixels(image, self.options.protocol.scored_size(*size_hw))
        return resize_pixels(small, size_hw)

    def _draw(self, mode: str, image: np.ndarray, labels: np.ndarray) -> Image.Image:
        options = self.options
        if mode == "mask":
            return Image.fromarray(labels.astype(np.uint8))
        if mode == "pred":
            return indexed_mask(labels, options.colours)
        kept = 0 if options.query.background is not None else None
        blended = Image.fromarray(blend(image, options.colours[labels], labels == kept))
        return (
            blended if mode == "input_pred" else write_names(blended, labels, options.names, kept)
        )


def layer_path(path: Path, index: int) -> Path:
    """`all_groups/photo.jpg` of stage 0 is `all_groups/photo_layer0.jpg`."""
    return path.with_name(f"{path.stem}_layer{index}{path.suffix}")


def write_names(
    picture: Image.Image, labels: np.ndarray, names: Sequence[str], left_out: int | None
) -> Image.Image:
    """Write the name of every label into the picture, at the centre of mass of its pixels.

    Args:
        picture: RGB.
        labels: (H, W).
        names: per label.
        left_out: a label without a name, or None.
    """
    layer = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(layer)
    for label in np.unique(labels):
        if label == left_out:
            continue
        rows, columns = np.nonzero(labels == label)
        name, path = drawn_name(names[label].strip(), int(label))
        font = legend_font(_LABEL_SIZE, path)
        left, top, right, bottom = font.getbbox(name)
        # The text begins at the centre, but ends inside the picture where it can.
        x = max(min(columns.mean(), picture.width - right), 0)
        y = max(min(rows.mean(), picture.height - bottom), 0)
        pen.rectangle((x + left, y + top, x + right, y + bottom), fill=(0, 0, 0, 128))
        pen.text((x, y), name, font=font, fill=(*_LABEL_COLOUR, 255))
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")
