"""What defines a Talk2DINO segmenter, read from a training recipe or from a model YAML."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talk2dino.backbones.seeded import PRETRAINED, parse_seeded
from talk2dino.backbones.templates import get_templates
from talk2dino.backbones.text import check_text, is_bert
from talk2dino.backbones.vision import SHORT_NAMES, check_vision
from talk2dino.config import build, check_at_least, check_name, naming
from talk2dino.files import find_in_checkout
from talk2dino.methods.talk2dino.hub.layout import read_parts
from talk2dino.methods.talk2dino.projection import ProjectionConfig
from talk2dino.methods.talk2dino.recipe import FrozenModels, load_recipe
from talk2dino.refine.refinement import RefinementOptions
from talk2dino.textfiles import parse_yaml, read_sections, read_yaml

logger = logging.getLogger(__name__)
MODEL_FIELDS = dataclasses.fields(FrozenModels)
PRECISIONS = {"fp32": "", "tf32": "tf32", "bf16": "bfloat16", "fp16": "float16"}
"""Name -> number type of the backbone's matrix products; see `devices.mixed_precision`."""


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(FrozenModels, RefinementOptions):
    """The frozen models, the projection between them, and the options of inference."""

    projection: ProjectionConfig
    projection_weights: str
    """A file, or `seeded:<n>`."""
    input_size: int = 448
    """Side in pixels of the square every window is resized to for the backbone."""
    template: str = "subset"
    """Name of the prompt set; see talk2dino.backbones.templates."""
    pamr: bool = False
    """Refine the scores along the edges of the window."""
    clean_background: bool = False
    """Raise scores where the backbone's attention heads agree with a class."""
    average_tokens: bool = False
    """Embed a class by the mean of its prompts' tokens instead of their end-of-text vectors."""
    keep_cls: bool = False
    """With `average_tokens`, keep position 0."""
    keep_end_seq: bool = False
    """With `average_tokens`, keep the end-of-text position."""
    precision: str = "fp32"
    """Of the vision backbone: `fp32`, `tf32`, `bf16` or `fp16`. The rest is always float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        get_templates(self.template)
        check_name("precision", self.precision, PRECISIONS)
        check_at_least(1, input_size=self.input_size)
        if self.average_tokens and self.projection.model_class == "CLIPLastLayer":
            raise ValueError("use_avg_text_token does not work with CLIPLastLayer")
        needs_clip = self.average_tokens or self.projection.model_class == "CLIPLastLayer"
        if needs_clip and is_bert(self.text_model):
            raise ValueError(f"{self.text_model} has no CLIP tokens, which this model needs")

    @property
    def whole(self) -> str | None:
        """The file of a whole model, if both frozen models are in one."""
        both = self.vision_weights if self.vision_weights == self.text_weights else None
        return None if both in (None, PRETRAINED) or parse_seeded(both or "") is not None else both

    def check(self) -> None:
        """Raise for unknown models, and for weight files that are missing; loads nothing.

        Raises:
            ValueError: an unknown name, or a damaged file of a whole model.
            FileNotFoundError: weights that are not there; says where to get them.
        """
        weights = self.projection_weights
        if parse_seeded(weights) is None and not Path(weights).is_file():
            raise FileNotFoundError(
                f"there are no projection weights at {weights}. weights/README.md says where the "
                "published files are, and train.py makes your own. Without any download: "
                "--config configs/toy.yaml --weights seeded:0, or in published YAML files "
                "model.projection_weights=seeded:0."
            )
        if self.whole is not None:
            read_parts(self.whole)  # of safetensors, the tensors stay on the disk
        check_vision(self.vision_model, None if self.whole else self.vision_weights)
        check_text(self.text_model, None if self.whole else self.text_weights)


_MODEL_YAML = {
    "model_name": "vision_model",
    "clip_model_name": "text_model",
    "resize_dim": "input_size",
    "with_bg_clean": "clean_background",
    "use_avg_text_token": "average_tokens",
    **{name: name for name in ("keep_cls", "keep_end_seq", "vision_weights", "text_weights")},
}
"""Key of the `model:` section of an evaluation's model YAML, as published -> ours."""
_NAMES = ("type", "model_name", "proj_class", "proj_name")
"""Keys that it must have; the last two name files of `configs/` and `weights/`."""


def read_segmenter_config(path: str | Path, **changes: Any) -> SegmenterConfig:
    """Read a recipe of `configs/` or a model YAML of an evaluation.

    Args:
        path: the YAML file; a model YAML has `type: DINOText` in its `model:` section.
        changes: fields of SegmenterConfig which replace what the file says.

    Raises:
        FileNotFoundError: the file, or the recipe it names, is not there.
        ValueError: unknown keys or values.
    """
    path = find_in_checkout(path)
    model = read_yaml(path).get("model")
    if isinstance(model, Mapping) and "type" in model:
        read_sections(path, ["model"], required="model")  # and no other
        config = config_from_model_section(model, path.name)
    else:
        recipe = load_recipe(path)
        config = SegmenterConfig(
            projection=recipe.model,
            projection_weights=_weights_file(path.stem),
            **{entry.name: getattr(recipe.features, entry.name) for entry in MODEL_FIELDS},
        )
    return dataclasses.replace(config, **changes)


def config_from_model_section(model: Mapping[str, Any], source: str) -> SegmenterConfig:
    """The segmenter of an evaluation's `model:` section.

    Args:
        model: the section's keys and values.
        source: file name for messages.
    """
    source = f"{source}: model"
    known = tuple(dict.fromkeys((*_NAMES, "proj_model", "projection_weights", *_MODEL_YAML)))
    with naming(source):
        for key in map(str, model):
            check_name("key", key, known)
    if missing := [f"'{name}:'" for name in _NAMES if name not in model]:
        raise ValueError(f"{source}: {', '.join(missing)} are missing")
    with naming(source):
        check_name("model type", model["type"], ["DINOText"])
        projection = load_recipe(f"configs/{model['proj_class']}.yaml").model
        if "proj_model" in model:
            projection = dataclasses.replace(projection, model_class=model["proj_model"])
    weights = model.get("projection_weights")
    values = {_MODEL_YAML[key]: value for key, value in model.items() if key in _MODEL_YAML}
    values["projection"] = projection
    values["projection_weights"] = (
        _weights_file(str(model["proj_name"])) if weights in (None, PRETRAINED) else weights
    )
    return build(SegmenterConfig, values, source)


def _weights_file(name: str) -> str:
    return str(find_in_checkout(Path("weights") / f"{name.removesuffix('.pth')}.pth"))


def feature_differences(settings: Mapping[str, Any], expected: FrozenModels) -> list[str]:
    """Sentences about frozen models that are not those that made some features.

    Args:
        settings: of a `FeatureFile`; what is not recorded there is not compared.
        expected: their names and weights.
    """
    differences = []
    for side in ("vision", "text"):
        found = settings.get(side, {})
        for key, wanted in zip(("model", "weights"), expected.frozen(side), strict=True):
            names = [SHORT_NAMES.get(n, n) for n in (found.get(key), wanted)]
            if names[0] not in (None, names[1]):
                differences.append(f"{side} {key} is {names[0]}, not {names[1]}")
    return differences


EVALUATION_SECTIONS = ("model", "evaluate")
QUALITATIVE = ("pred_qual_path", "gt_qual_path")

# Keys of the published files that nothing ever read, that only training read, or that chose
# files and loaders, as _base_ did; our two files hold every setting.
WITHOUT_EFFECT = {
    "": {
        *("_base_", "model_name", "output", "tag", "wandb", "seed", "print_freq"),
        *("checkpoint", "data", "train"),
    },
    "model": {
        *("avg_self_attn_token", "disentangled_self_attn_token", "loss", "pre_trained", "is_eval"),
        *("unfreeze_last_text_layer", "unfreeze_last_image_layer"),
    },
    "evaluate": {
        *("kp_w", "save_logits", "eval_only", "eval_freq", "batch_size", "num_workers"),
        *("opt_threshold", "w_supp"),
    },
}


@dataclass(frozen=True)
class EvaluateSection:
    """The `evaluate:` section."""

    task: list[str] | str
    """Keys of benchmarks."""
    pamr: bool = False
    """Refine the masks with PAMR."""
    bg_thresh: float | None = None
    """Threshold of the background, on sigmoid(cosine)."""
    template: str = "sub_imagenet_template"
    """Prompt set."""
    pred_qual_path: str | None = None
    """Folder for predictions in colours."""
    gt_qual_path: str | None = None
    """Folder for ground truth in colours."""


def read_published(
    model_file: str | Path, evaluation_file: str | Path | None, options: Sequence[str] = ()
) -> tuple[SegmenterConfig, EvaluateSection, str]:
    """Read and merge: the evaluation file first, the model file over it, the options over both.

    Args:
        model_file: `--eval_cfg`.
        evaluation_file: `--eval_base`, which may be left out if the other holds everything.
        options: `section.key=value` with YAML values.

    Returns:
        Models and options of inference, the rest, and the name of the projection's recipe.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: an unknown section or key, or a wrong value.
    """
    files = [Path(path) for path in (evaluation_file, model_file) if path is not None]
    given = [(path.name, read_yaml(path)) for path in files]
    given += [("--opts", _parse_option(option)) for option in options]
    merged: dict[str, dict[str, Any]] = {name: {} for name in EVALUATION_SECTIONS}
    ignored: list[str] = []
    for source, content in given:
        for name, values in content.items():
            if name in WITHOUT_EFFECT[""]:
                ignored.append(str(name))
                continue
            with naming(source):
                check_name("section", str(name), EVALUATION_SECTIONS)
            if not isinstance(values, Mapping):
                raise ValueError(
                    f"{source}: '{name}:' must hold 'key: value' lines, found {values!r}"
                )
            for key, value in values.items():
                if key in WITHOUT_EFFECT[name] or (key in QUALITATIVE and value is None):
                    ignored.append(f"{name}.{key}")
                else:
                    merged[name][key] = value
    if ignored:
        logger.warning(
            "these keys have no effect here and are ignored: %s%s",
            ", ".join(dict.fromkeys(ignored)),
            ". Files named by _base_ are not read" if "_base_" in ignored else "",
        )
    source = " + ".join(path.name for path in files)
    for name in EVALUATION_SECTIONS:
        if not merged[name]:
            raise ValueError(
                f"{source}: the section '{name}:' is missing. A model file (--eval_cfg) and an "
                "evaluation file (--eval_base) are needed."
            )
    config = config_from_model_section(merged["model"], source)
    section = build(EvaluateSection, merged["evaluate"], source)
    with naming(source):
        config = dataclasses.replace(config, pamr=section.pamr, template=section.template)
    return config, section, str(merged["model"]["proj_class"])


def _parse_option(option: str) -> dict[str, Any]:
    """`evaluate.bg_thresh=0.52` as the content of a file."""
    name, equals, text = option.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and section and key):
        raise ValueError(f"--opts {option}: expected section.key=value.")
    return {section: {key: parse_yaml(text, f"--opts {option[:200]}: the value")}}
