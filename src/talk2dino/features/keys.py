"""Names of the stored features and layouts, and the command that adds each (see docs/data.md)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

IMAGE_KEYS = {
    "dino_features": "--extract_cls",
    "avg_self_attn_out": "--extract_avg_self_attn",
    "disentangled_self_attn": "--extract_disentangled_self_attn",
    "self_attn_maps": "--extract_self_attn_maps",
    "patch_tokens": "--extract_patch_tokens",
    "second_last_out": "--extract_second_last_out",
}
"""Key of an image feature -> the flag of dino_extraction_v2.py that stores it."""

CAPTION_KEYS = {
    "ann_feats": "",
    "clip_txt_out_tokens": "--extract_dense_out",
    "text_input_mask": "--extract_dense_out",
    "clip_second_last_out": "--extract_second_last_dense_out",
    "text_argmax": "--extract_second_last_dense_out",
    "bert-base_features": "--model bert-base-uncased",
}
"""Key of a caption feature -> the flags of text_features_extraction.py that store it."""

BERT_KEY = "bert-base_features"
CLIP_KEYS = tuple(key for key in CAPTION_KEYS if key != BERT_KEY)

DIMENSIONS = dict.fromkeys([*IMAGE_KEYS, *CAPTION_KEYS], 2) | {
    **dict.fromkeys(("disentangled_self_attn", "self_attn_maps", "patch_tokens"), 3),
    **dict.fromkeys(("clip_txt_out_tokens", "clip_second_last_out"), 3),
    "text_argmax": 1,
}
"""Key -> axes of its column; the first one is that of the images or captions."""

LAYOUTS = ("columnar", "coco")
"""Of a feature file: ours (features/store.py), and the published one."""


def adding_command(key: str, path: Path, settings: dict[str, Any]) -> str:
    """The sentence that tells how to add `key` to the feature file `path`.

    It repeats the recorded settings: with others the features of the file would not be kept.
    """
    if key in CAPTION_KEYS:
        recorded = {} if key.startswith("bert") else settings.get("text", {})
        flags = [*_as_flags(recorded, "--text_weights"), CAPTION_KEYS[key]]
        script = "text_features_extraction.py"
    elif key in IMAGE_KEYS:
        recorded = settings.get("vision", {})
        flags = [*_as_flags(recorded, "--vision_weights"), IMAGE_KEYS[key], "--overwrite"]
        script = "dino_extraction_v2.py"
    else:
        return f"Known keys: {', '.join([*IMAGE_KEYS, *CAPTION_KEYS])}."
    return f"Run: {' '.join(filter(None, ['python', script, f'--ann_path {path}', *flags]))}"


def _as_flags(recorded: dict[str, Any], weights_flag: str) -> list[str]:
    """Recorded settings as the flags that ask for them again; defaults are left out."""
    flags = []
    for name, value in recorded.items():
        if (name, value) in (("weights", "pretrained"), ("dtype", "float32")) or value is False:
            continue
        if name in ("mean", "std"):  # the model's own
            continue
        flag = weights_flag if name == "weights" else f"--{name}"
        flags.append(flag if value is True else f"{flag} {value}")
    return flags


def first_few(values: Iterable[Any], count: int = 3) -> str:
    """`a, b, c, ... (7 in all)`: for messages about many things."""
    values = list(values)
    listed = ", ".join(map(str, values[:count]))
    return listed if len(values) <= count else f"{listed}, ... ({len(values)} in all)"
