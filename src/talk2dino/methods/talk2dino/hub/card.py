"""The model card: what a folder's README.md says, filled from the training and its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import indent
from typing import Any

from markupsafe import escape

import talk2dino
from talk2dino.backbones.seeded import PREFIX
from talk2dino.benchmarks.results import NoResult, markdown_table, read_result
from talk2dino.files import listed
from talk2dino.methods.talk2dino.hub.folder import INCLUDED, FolderConfig
from talk2dino.methods.talk2dino.hub.published import TOY
from talk2dino.methods.talk2dino.training.state import present_settings

_USE = """## Use

```python
from talk2dino import Talk2DINO

model = Talk2DINO.from_pretrained("{name}")  # this repository's name, or the folder's path
result = model.segment("photo.jpg", ["cat", "grass"], background=True)
result.overlay().show()
result.areas()  # percent
```

`AutoModel.from_pretrained` of transformers loads it too, after `import talk2dino`.
"""

_LICENCES = """## Licences

The projection and the code are Apache-2.0. Frozen models keep the licence of their authors: DINOv2
Apache-2.0, DINOv3 the DINOv3 licence, OpenAI's CLIP MIT.
"""
_DINOV3_LICENCE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license"


def read_results(folder: str | Path) -> list[dict[str, Any]]:
    """The results in the output folder of an evaluation, in the order of their names.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a damaged file, or one with a wrong field.
    """
    results = []
    for path in listed(folder, "*.json"):
        with suppress(NoResult):  # of another command
            results.append(read_result(path))
    if not results:
        raise FileNotFoundError(f"{folder} holds no results of an evaluation (*.json).")
    return results


def model_card(config: FolderConfig, name: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown with front matter: the models, the training, the numbers, and how to use it.

    Args:
        config: what is in the folder.
        name: what `from_pretrained` finds the folder by: its repository, or a path.
        results: as `read_results` gives them.
    """
    title = name.rpartition("/")[2]
    parts = [
        _front_matter(config, title, results),
        f"# {title}\n",
        "Open-vocabulary segmentation: name anything in words, get it segmented. A "
        "[Talk2DINO](https://arxiv.org/abs/2411.19331) model, written by talk2dino "
        f"{talk2dino.__version__}.\n",
    ]
    if config.segmenter.projection_weights.startswith(PREFIX):
        parts.append("**The projection is untrained: what it segments means nothing.**\n")
    parts += [_USE.format(name=name), _models(config), _training(config.training)]
    parts += [_numbers(results), _LICENCES]
    return "\n".join(part for part in parts if part)


def _front_matter(config: FolderConfig, title: str, results: Sequence[Mapping[str, Any]]) -> str:
    """What the Hub reads: licence, tags, and the numbers as a model index."""
    from huggingface_hub import EvalResult, ModelCardData

    numbers = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=result["benchmark"],
            dataset_name=result["title"],
            metric_type="mean_iou",
            metric_name="mIoU with PAMR" if result["pamr"] else "mIoU",
            metric_value=round(result["mIoU"], 2),
        )
        for result in results
        if result["mIoU"] is not None
    ]
    data = ModelCardData(
        **_licence(config),
        library_name="talk2dino",
        pipeline_tag="image-segmentation",
        tags=["open-vocabulary-segmentation", "talk2dino"],
        eval_results=numbers or None,
        model_name=title if numbers else None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _licence(config: FolderConfig) -> dict[str, Any]:
    """The projection's licence, or that of a backbone in the folder."""
    vision = config.segmenter.vision_model
    if config.segmenter.vision_weights != INCLUDED or vision == TOY or "dinov2" in vision:
        return {"license": "apache-2.0"}
    if "dinov3" not in vision:
        return {"license": "unknown"}
    name = "dinov3-license"
    return {"license": "other", "license_name": name, "license_link": _DINOV3_LICENCE}


def _models(config: FolderConfig) -> str:
    segmenter, projection = config.segmenter, config.segmenter.projection
    rows = [
        ("vision", segmenter.vision_model, _where(segmenter.vision_weights)),
        ("text", segmenter.text_model, _where(segmenter.text_weights)),
        (
            "projection",
            f"{projection.model_class}, {projection.clip_embed_dim} to "
            f"{projection.dino_embed_dim}, hidden layers: {projection.num_hidden_layers}",
            _where(segmenter.projection_weights, INCLUDED),
        ),
    ]
    lines = ["## Models", "", "| part | model | weights |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += [
        "",
        f"Windows are {segmenter.input_size} pixels wide for the backbone; prompts: "
        f"`{segmenter.template}`; background threshold: {config.background_threshold}.\n",
    ]
    return "\n".join(lines)


def _where(weights: str | None, default: str = "") -> str:
    if weights is None or weights == INCLUDED:
        return "in this folder"
    return f"`{weights}`" if weights.startswith(PREFIX) or weights == "pretrained" else default


def _training(training: Mapping[str, Any]) -> str:
    """The section on a training, from the summary that `train.py` writes."""
    if not training:
        return ""
    settings = present_settings(training.get("settings") or {})
    lines = ["## Training", ""]
    if training.get("command"):
        lines += [indent(str(training["command"]), "    "), ""]  # no fence that it could end
    facts = {
        "recipe": training.get("recipe"),
        "training data": settings.get("train_dataset"),
        "captions": settings.get("captions"),
        "validation data": settings.get("val_dataset"),
        "features": settings.get("feature_name"),
        "loss": settings.get("train.ltype"),
        "temperature": settings.get("train.temperature"),
        "epochs": training.get("epochs"),
        "best epoch": training.get("best_epoch"),
        "train loss": training.get("train_loss"),
        "validation loss": training.get("val_loss"),
    }
    lines += [
        f"* {name}: {escape(' '.join(str(value).split()))}"
        for name, value in facts.items()
        if value is not None
    ]
    if training.get("changed_later"):
        lines.append("* The projection was changed in Python afterwards.")
    return "\n".join([*lines, ""])


def _numbers(results: Sequence[Mapping[str, Any]]) -> str:
    """The section on benchmarks; tables with and without refinement apart."""
    if not results:
        return ""
    lines = ["## Benchmarks", ""]
    for refined in (False, True):
        rows = [result for result in results if bool(result["pamr"]) is refined]
        if rows:
            heading = "With PAMR:" if refined else "Without PAMR:"
            lines += [heading, "", escape(markdown_table(rows))]
    return "\n".join(lines)
