"""A small training for the tests of `train.py`: its recipe, its features and its command line."""

import torch
import yaml

from talk2dino.cli.train import Train
from talk2dino.features.store import FeatureFile

RECIPE = {
    "model": {"dino_embed_dim": 6, "clip_embed_dim": 64, "num_attn_head": 3, "hidden_layer": 1},
    "train": {"lr": 0.01, "num_epochs": 3, "batch_size": 8, "save_best_model": False},
}


def features(seed=0, images=8, per_image=3):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(images).repeat_interleave(per_image)
    heads = torch.randn(images, 3, 6, generator=generator)
    to_text = torch.randn(6, 64, generator=torch.Generator().manual_seed(99))
    return FeatureFile(
        images=[{"id": n, "file_name": f"{n}.jpg"} for n in range(images)],
        annotations=[
            {"id": 50 + n, "image_id": int(row), "caption": "a"} for n, row in enumerate(rows)
        ],
        image_features={
            "disentangled_self_attn": heads,
            "avg_self_attn_out": heads.mean(dim=1),
        },
        caption_features={"ann_feats": heads.mean(dim=1)[rows] @ to_text},
    )


def write_recipe(path, **sections):
    content = {name: {**RECIPE[name], **sections.get(name, {})} for name in RECIPE}
    path.write_text(
        yaml.safe_dump({**content, **{k: v for k, v in sections.items() if k not in content}})
    )


def train(*flags):
    return Train.main(
        ["--model", "recipe.yaml", "--train_dataset", "train.pth", "--device", "cpu", *flags]
    )
