"""What features were made with, compared with what somebody believes they were made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from talk2dino.backbones import text, vision
from talk2dino.methods.talk2dino.config import SegmenterConfig
from talk2dino.methods.talk2dino.sections import FeatureConfig
from talk2dino.training.job import read_summary


class Difference(NamedTuple):
    """One setting that is not as expected."""

    what: str
    """For example `vision weights`."""
    found: Any
    """What the features say."""
    expected: Any
    """What was believed."""


def feature_differences(
    settings: dict[str, Any], expected: FeatureConfig, sizes: bool = True
) -> list[Difference]:
    """Compare the settings of a feature file with a recipe's `features` section.

    Args:
        settings: of a `FeatureFile`; what is not recorded there is not compared.
        expected: model names, weights and sizes.
        sizes: also compare the size of the images.
    """
    wanted = {
        ("vision", "model"): _full_name(expected.vision_model),
        ("vision", "weights"): expected.vision_weights
        or vision.default_weights(expected.vision_model),
        ("text", "model"): expected.text_model,
        ("text", "weights"): expected.text_weights or text.default_weights(expected.text_model),
    }
    if sizes:
        wanted["vision", "resize_dim"] = expected.resize_dim
        wanted["vision", "crop_dim"] = expected.crop_dim
    found = {key: settings.get(key[0], {}).get(key[1]) for key in wanted}
    if found["vision", "model"] is not None:  # nothing recorded stands for ImageNet's
        mean, std = vision.normalisation(expected.vision_model)
        wanted |= {("vision", "mean"): list(mean), ("vision", "std"): list(std)}
        recorded = settings["vision"]
        found["vision", "mean"] = list(recorded.get("mean", vision.IMAGENET_MEAN))
        found["vision", "std"] = list(recorded.get("std", vision.IMAGENET_STD))
    found["vision", "model"] = _full_name(found["vision", "model"])
    return [
        Difference(" ".join(key), found[key], value)
        for key, value in wanted.items()
        if found[key] not in (None, value)
    ]


def differences_from_training(config: SegmenterConfig) -> list[str]:
    """Sentences about models other than the projection was trained with.

    Read from the JSON file that a training writes beside its weights; none if it is not there.
    """
    summary = read_summary(Path(config.projection_weights).with_suffix(".json"))
    models = FeatureConfig(
        config.vision_model, config.vision_weights, config.text_model, config.text_weights
    )
    return [
        f"the projection was trained on {what} {found}, and meets {expected} now"
        for what, found, expected in feature_differences(
            summary.get("trained_on", {}), models, sizes=False
        )
    ]


def _full_name(name: Any) -> Any:
    return vision.SHORT_NAMES.get(name, name)
