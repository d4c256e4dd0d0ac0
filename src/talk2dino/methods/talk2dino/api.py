"""The Python API: load a model by name, ask it about pictures and words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from talk2dino.backbones.seeded import PREFIX
from talk2dino.backbones.templates import check_names, get_templates
from talk2dino.backbones.text import BertEncoder, TextEncoder
from talk2dino.backbones.vision import PatchFeatures, VisionBackbone, average_attention
from talk2dino.config import check_name
from talk2dino.devices import in_float32, keep_float32, resolve_device
from talk2dino.methods.talk2dino.hub.find import FoundModel, find_model
from talk2dino.methods.talk2dino.hub.save import Saving
from talk2dino.methods.talk2dino.projection import Projection
from talk2dino.methods.talk2dino.segmenter import (
    PARTS,
    Talk2DinoSegmenter,
    build_segmenter,
    patch_cosines,
)
from talk2dino.pictures.images import ImageInput, as_rgb, rgb_tensor
from talk2dino.pictures.vocabularies import class_names
from talk2dino.predict import class_threshold, segment_picture
from talk2dino.refine.refinement import REFINEMENTS, chosen_refinements
from talk2dino.segmenter import ClassQuery
from talk2dino.sizes import WHOLE

T = TypeVar("T", bound="Talk2DINO")
Images = Sequence[ImageInput] | np.ndarray | Tensor
POOLS: dict[str, Callable[[PatchFeatures], Tensor]] = {
    "attention": lambda found: average_attention(found.attention_logits, found.patches),
    "mean": lambda found: found.patches.mean(dim=1),
    "cls": lambda found: found.cls,
}
"""How `encode_image` makes one vector (B, D) of a picture."""
BACKGROUND_FUNCTION = "weighted_average_sigmoid"
LAMBDA = 0.2
"""The published weight of background cleaning."""
_IMAGE_BATCH = 8


class Talk2DINO(Saving, nn.Module):
    """A model that segments pictures by words. Pictures are RGB everywhere but `generate_masks`.

    A picture is a path, a PIL image, an (H, W, 3) uint8 array or a (3, H, W) uint8 tensor; an
    encoded one is bytes, an open binary file, or {"bytes": ..., "path": ...} of a data set.

    Its parts (`vision`, `text`, `projection`) are those of `segmenter`, and can be replaced.

    Args:
        segmenter: the models and the options of inference; the layer below this one.
        loaded: where they come from; `from_pretrained` finds it.
    """

    vision: VisionBackbone
    text: TextEncoder | BertEncoder
    projection: Projection
    config: Any = None
    """Of transformers, if `AutoModel` loaded it."""
    _apply = keep_float32

    def __init__(self, segmenter: Talk2DinoSegmenter, loaded: FoundModel) -> None:
        super().__init__()
        self.segmenter, self.loaded = segmenter, loaded
        self._as_loaded = {part: _fingerprint(getattr(segmenter, part)) for part in PARTS}
        self.eval()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "segmenter":  # one place for the parts
            self.__dict__.update(segmenter=value, _modules=value._modules)
        elif name in PARTS:
            setattr(self.segmenter, name, value)
        else:
            super().__setattr__(name, value)

    def __repr__(self) -> str:
        config = self.segmenter.config
        return f"<Talk2DINO {self.loaded.origin}: {config.vision_model}, on {self.device}>"

    @classmethod
    def from_pretrained(
        cls: type[T],
        name_or_path: str | Path,
        device: str | torch.device = "auto",
        *,
        config: str | Path | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> T:
        """Load a model, in evaluation mode. Code that comes with a repository never runs.

        Args:
            name_or_path: `toy` (no download; untrained), a published model (`vitb`, `vitl`,
                `dinov3_vitb`, `dinov3_vitl`: from weights/ or else the Hub), a folder that
                `save_pretrained` wrote, a file (the projection that `train.py` wrote, a
                published one, or a whole model), or a repository on the Hub (`owner/name`).
            device: `auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:<index>` or `mps`.
            config: recipe of a projection's file that does not tell its backbones.
            revision: branch, tag or commit of a repository.
            token: for private repositories.
            cache_dir: where downloads are kept; default: the Hugging Face cache.
            local_files_only: use the cache and nothing else.
            force_download: download again what is in the cache.

        Raises:
            ValueError: an unknown name or device; damaged files; the files of another model,
                with a guess of which; no such repository.
            FileNotFoundError: files that are not there; says where to get them.
            RuntimeError: a download that failed; says what to download and where to put it.
        """
        target = resolve_device(str(device))
        found = find_model(
            str(name_or_path),
            config,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return cls(build_segmenter(found.config, target), found)

    @property
    def device(self) -> torch.device:
        return self.segmenter.device

    @property
    def changed(self) -> list[str]:  # type: ignore[override]
        """The parts that were trained, replaced or overwritten since they were loaded."""
        return [p for p in PARTS if _fingerprint(getattr(self, p)) != self._as_loaded[p]]

    @property
    def is_trained(self) -> bool:
        """Whether the projection was trained; with a seeded one, results mean nothing."""
        drawn = self.loaded.config.projection_weights.startswith(PREFIX)
        return not drawn or "projection" in self.changed

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Texts as they are, without prompt templates, in the space of the patches.

        Args:
            texts: one text or several.

        Returns:
            (N, D) float32 on the model's device, not normalised.

        Raises:
            ValueError: no text, or something that is none.
        """
        return self.segmenter.embed_texts(texts)

    @in_float32
    def encode_image(self, images: ImageInput | Images, pool: str | None = None) -> Tensor:
        """Embeddings of one picture or several of any sizes: of their patches, or one of each.

        Every picture is resized to the model's square input (448 x 448: 32 x 32 patches of a
        DINOv2 model), so the aspect ratio is lost.

        Args:
            images: one picture, several, or a (B, 3, H, W) tensor.
            pool: one of POOLS: the mean of the patches weighted by the average attention of the
                CLS token, as for the validation of a training; their plain mean; the CLS token.
                None: every patch.

        Returns:
            (B, P, D) float32 on the model's device, rows of the picture first, not normalised; with
            `pool` (B, D). The same space as `encode_text`.

        Raises:
            ValueError: an unknown pool; no picture, or one that cannot be read or has another form.
            FileNotFoundError: a path that is not there.
        """
        if pool is not None:
            check_name("pool", pool, POOLS)
        found, pictures = [], _decoded(*_as_list(images))
        while batch := list(islice(pictures, _IMAGE_BATCH)):
            windows = [rgb_tensor(image)[None].to(self.device, torch.float32) for image in batch]
            squares = torch.cat([self.segmenter.resize_windows(window) for window in windows])
            if pool is None:
                found.append(self.segmenter.patch_features(squares).patches)
            else:
                features = self.vision(self.vision.normalise(squares))
                found.append(self.projection.project_visual(POOLS[pool](features)))
        return torch.cat(found)

    @in_float32
    def segment(
        self,
        images: ImageInput | Images,
        names: str | Sequence[str],
        background: bool | float = False,
        refine: bool | str = True,
        *,
        clean_background: bool | None = None,
        max_side: int | None = None,
    ) -> Any:
        """Find the best of the named classes for every pixel.

        Args:
            images: one picture, or several of any sizes.
            names: class names, in any words; prompt templates are put around them.
            background: pixels where no class exceeds a threshold become `background`: a number is
                the threshold on sigmoid(cosine) (lower finds more), True the model's own.
            refine: follow the edges of the picture (PAMR); or names of refinements with commas,
                such as "propagation,pamr".
            clean_background: raise scores where the attention heads agree; None: with a
                background only, as in the published benchmarks.
            max_side: score larger pictures at this long side in pixels, to save time and memory;
                the result has the picture's own size in any case.

        Returns:
            A `Segmentation`, or a list of them for several pictures.

        Raises:
            ValueError: no names, an empty or repeated one; a threshold outside 0 to 1; a picture
                that cannot be read.
            FileNotFoundError: a path that is not there.
        """
        threshold = class_threshold(background, self.loaded.background_threshold)
        classes = class_names(names, threshold is not None)
        clean = threshold is not None if clean_background is None else clean_background
        wanted = {"pamr": refine} if isinstance(refine, bool) else chosen_refinements(refine)
        refined = dict.fromkeys(REFINEMENTS, False) | wanted
        segmenter = self.segmenter.variant(**refined, clean_background=clean)
        query = segmenter.query(classes, threshold)
        settings = {"model": self.loaded.origin, "refine": refine, "clean_background": clean}
        pictures, single = _as_list(images)
        results = [
            segment_picture(segmenter, image, query, WHOLE, max_side, settings)
            for image in _decoded(pictures, single)
        ]
        return results[0] if single else results

    # -- The methods of the published class, for code that was written against it --

    def build_dataset_class_tokens(self, template_set: str, classnames: Sequence[str]) -> Tensor:
        """Token ids (C, T, 77) of C class names in the T prompts of a template set.

        Args:
            template_set: name of the prompts, as `sub_imagenet_template` (= `subset`) or `full`.
            classnames: the classes, without the background.

        Raises:
            ValueError: an unknown set; no class, an empty one or one that is no text; a text
                encoder that is no CLIP.
        """
        names, templates = check_names(classnames), get_templates(template_set)
        tokenize = self._clip_text().tokenize
        tokens = [tokenize([template.format(name) for template in templates]) for name in names]
        return torch.stack(tokens).to(self.segmenter.device)

    def build_text_embedding(self, text: Tensor) -> Tensor:
        """Unit-length class embeddings (C, D) of the tokens (C, T, 77) of their prompts.

        The mean of the prompts' CLIP vectors, projected; what `segmenter.embed_classes` gives.

        Raises:
            ValueError: another shape or type, or a text encoder that is no CLIP.
        """
        self._clip_text()
        _check_tensor("tokens", text, "(C, T, 77) whole numbers", 3, whole=True)
        return self.segmenter.embed_class_tokens(text.long())

    @in_float32
    def generate_masks(
        self,
        image: Tensor,
        img_metas: Any,
        text_emb: Tensor,
        classnames: Sequence[str] | None = None,
        text_is_token: bool = False,
        apply_pamr: bool = False,
        background_func: str = BACKGROUND_FUNCTION,
        lambda_bg: float = LAMBDA,
    ) -> tuple[Tensor, Tensor]:
        """Score windows, without a background channel.

        Args:
            image: (B, 3, H, W) **BGR**, float in [0, 255], as MMSegmentation loads pictures.
            img_metas, classnames: not used; the published callers pass them.
            text_emb: (C, D) from `build_text_embedding`.
            text_is_token: only false is supported: classes are compared by one vector each.
            apply_pamr: refine the masks along the image's edges.
            background_func: how cleaning mixes; there is one way.
            lambda_bg: weight of the cleaning, which is on if the model's `clean_background` is.

        Returns:
            masks (B, C, H, W): sigmoid(cosine), cleaned and refined;
            cosines (B, C, h, w) on the grid of patches, before both.

        Raises:
            ValueError: other shapes or types, or an option that is not supported.
        """
        _check_tensor("image", image, "(B, 3, H, W) BGR", 4)
        _check_tensor("text_emb", text_emb, "(C, D) of build_text_embedding", 2)
        for name, found, only in (
            ("text_is_token", text_is_token, False),
            ("background_func", background_func, BACKGROUND_FUNCTION),
            ("lambda_bg", lambda_bg, LAMBDA),
        ):
            if found != only:
                raise ValueError(f"{name}={found!r} is not supported, only {only!r}.")
        text_emb = text_emb.to(self.segmenter.device, torch.float32)
        windows = image.to(self.segmenter.device, torch.float32).flip(1)  # BGR to RGB
        method = self.segmenter.variant(pamr=apply_pamr)
        features = method.patch_features(windows)
        cosines = patch_cosines(features.patches, text_emb)
        side = method.config.input_size // method.vision.patch_size
        masks = method.score_features(features, windows, ClassQuery.of_rows(text_emb))
        return masks, cosines.unflatten(-1, (side, side))

    def _clip_text(self) -> TextEncoder:
        text = self.segmenter.text
        if not isinstance(text, TextEncoder):
            raise ValueError(f"{text.name} is no CLIP text encoder, so it has no CLIP tokens.")
        return text


def _fingerprint(part: nn.Module) -> dict[str, tuple[tuple[int, ...], int]]:
    """Name -> shape and sum of the bits of every tensor, the same on every device."""
    return {
        name: (tuple(value.shape), int(value.detach().contiguous().view(torch.int32).sum()))
        for name, value in part.state_dict().items()
        if value.dtype is torch.float32
    }


def _as_list(images: ImageInput | Images) -> tuple[list[ImageInput], bool]:
    """Pictures, and whether there was a single one that is no list."""
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4 and len(images):
        return list(images), False
    one = (str, Path, Image.Image, np.ndarray, Tensor, bytes, bytearray, memoryview, Mapping)
    if isinstance(images, one) or hasattr(images, "read") or not isinstance(images, Iterable):
        return [cast(ImageInput, images)], True
    pictures = list(images)
    if not pictures:
        raise ValueError("no images given. At least one is needed.")
    return pictures, False


def _decoded(pictures: list[ImageInput], single: bool) -> Iterator[Image.Image]:
    """RGB pictures, decoded when asked for; errors say which of a list it is."""
    for place, picture in enumerate(pictures):
        try:
            image = as_rgb(picture)
        except (ValueError, OSError) as error:
            if single:
                raise
            kind = type(error) if isinstance(error, OSError) else ValueError
            raise kind(f"images[{place}]: {error}") from error
        yield image


def _check_tensor(name: str, value: Any, form: str, ndim: int, whole: bool = False) -> None:
    """Raise ValueError for what is no tensor with `ndim` axes, none of them empty."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor {form}, found {type(value).__name__}.")
    if value.ndim != ndim or 0 in value.shape or (whole and value.is_floating_point()):
        raise ValueError(f"{name} must be {form}, found {tuple(value.shape)} {value.dtype}.")
