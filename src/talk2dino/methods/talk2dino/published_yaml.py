"""The published evaluation YAML files: a model file, an evaluation file, and `--opts` over both."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talk2dino.backbones.templates import get_templates
from talk2dino.benchmarks.table import Benchmark, find_benchmarks
from talk2dino.config import build, check_name, naming
from talk2dino.methods.talk2dino.config import SegmenterConfig, config_from_model_section
from talk2dino.textfiles import parse_yaml, read_yaml

logger = logging.getLogger(__name__)

SECTIONS = ("model", "evaluate")
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
    """The `evaluate:` section, but for `task`, which is a list."""

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

    def __post_init__(self) -> None:
        get_templates(self.template)


@dataclass(frozen=True)
class PublishedEvaluation:
    """What the files say together."""

    config: SegmenterConfig
    """Models and options of inference."""
    benchmarks: list[Benchmark]
    """The tasks."""
    evaluate: EvaluateSection
    """The other settings."""
    recipe: str
    """Name of the projection's recipe, without its suffix."""
    model_file: str
    """The same of the model file."""


def read_published(
    model_file: str | Path, evaluation_file: str | Path | None, options: Sequence[str] = ()
) -> PublishedEvaluation:
    """Read and merge: the evaluation file first, the model file over it, the options over both.

    Args:
        model_file: `--eval_cfg`.
        evaluation_file: `--eval_base`, which may be left out if the other holds everything.
        options: `section.key=value` with YAML values.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: an unknown section or key, or a wrong value.
    """
    files = [Path(path) for path in (evaluation_file, model_file) if path is not None]
    given = [(path.name, read_yaml(path)) for path in files]
    merged: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    ignored: list[str] = []
    for source, content in (*given, ("--opts", _parse_options(options))):
        for name, values in content.items():
            if name in WITHOUT_EFFECT[""]:
                ignored.append(str(name))
                continue
            with naming(source):
                check_name("section", str(name), SECTIONS)
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
    for name in SECTIONS:
        if not merged[name]:
            raise ValueError(
                f"{source}: the section '{name}:' is missing. A model file (--eval_cfg) and an "
                "evaluation file (--eval_base) are needed."
            )
    task = merged["evaluate"].pop("task", None)
    if not isinstance(task, str | list) or not all(isinstance(name, str) for name in task):
        raise ValueError(f"{source}: evaluate.task must list benchmarks, found {task!r}.")
    return PublishedEvaluation(
        config=config_from_model_section(merged["model"], source),
        benchmarks=find_benchmarks(task),
        evaluate=build(EvaluateSection, merged["evaluate"], source),
        recipe=str(merged["model"]["proj_class"]),
        model_file=Path(model_file).stem,
    )


def _parse_options(options: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["evaluate.bg_thresh=0.52"]` as the content of a file."""
    content: dict[str, dict[str, Any]] = {}
    for option in options:
        name, equals, text = option.partition("=")
        section, dot, key = name.partition(".")
        if not (equals and dot and section and key):
            raise ValueError(f"--opts {option}: expected section.key=value.")
        value = parse_yaml(text, f"--opts {option[:200]}: the value")
        content.setdefault(section, {})[key] = value
    return content
