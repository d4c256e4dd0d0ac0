"""Names of the stored features and layouts, and the command that adds each (see docs/data.md)."""

from pathlib import Path

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

DIMENSIONS = dict.fromkeys([*IMAGE_KEYS, *CAPTION_KEYS], 2) | {
    **dict.fromkeys(("disentangled_self_attn", "self_attn_maps", "patch_tokens"), 3),
    **dict.fromkeys(("clip_txt_out_tokens", "clip_second_last_out"), 3),
    "text_argmax": 1,
}
"""Key -> axes of its column; the first one is that of the images or captions."""

LAYOUTS = ("columnar", "coco")
"""Of a feature file: ours (features/store.py), and the published one."""


def adding_command(key: str, path: Path) -> str:
    """The sentence that tells how to add `key` to the feature file `path`."""
    if key in CAPTION_KEYS:
        words = ["text_features_extraction.py", f"--ann_path {path}", CAPTION_KEYS[key]]
    elif key in IMAGE_KEYS:
        words = ["dino_extraction_v2.py", f"--ann_path {path}", IMAGE_KEYS[key], "--overwrite"]
    else:
        return f"Known keys: {', '.join([*IMAGE_KEYS, *CAPTION_KEYS])}."
    command = " ".join(["python", *filter(None, words)])
    return f"Run, with the model and sizes that made the others: {command}"
