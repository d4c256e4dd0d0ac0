"""Small feature files, made as the extraction commands make them."""

from collections.abc import Callable, Iterator

import pytest
import torch

from talk2dino.features.store import FeatureFile

TEXT_WIDTH = 64  # the narrowest that CLIPLastLayer's attention heads allow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_features() -> Callable[..., FeatureFile]:
    """The factory below."""
    return make_tiny_features


def make_tiny_features(
    images: int = 8, per_image: int = 3, seed: int = 0, width: int = 6
) -> FeatureFile:
    """Every stored key, for images whose captions describe them.

    Captions are a fixed linear image of their image's features plus noise, so there is something
    to learn. D = 6, E = 64, H = 3, P = 4, T = 7 tokens.
    """
    random = torch.Generator().manual_seed(seed)
    captions = images * per_image
    rows = torch.arange(images).repeat_interleave(per_image)
    heads = torch.randn(images, 3, width, generator=random)
    to_text = torch.randn(width, TEXT_WIDTH, generator=torch.Generator().manual_seed(99))
    text = heads.mean(dim=1)[rows] @ to_text
    text = text + 0.1 * torch.randn(captions, TEXT_WIDTH, generator=random)
    mask = torch.arange(7) < torch.randint(3, 8, (captions, 1), generator=random)
    tokens = text[:, None, :] + torch.randn(captions, 7, TEXT_WIDTH, generator=random)
    return FeatureFile(
        images=[{"id": 100 + n, "file_name": f"{n}.jpg"} for n in range(images)],
        annotations=[
            {"id": 1000 + n, "image_id": 100 + int(row), "caption": f"caption {n}"}
            for n, row in enumerate(rows)
        ],
        image_features={
            "disentangled_self_attn": heads,
            "avg_self_attn_out": heads.mean(dim=1),
            "dino_features": torch.randn(images, width, generator=random),
            "second_last_out": torch.randn(images, width, generator=random),
            "patch_tokens": torch.randn(images, 4, width, generator=random),
            "self_attn_maps": torch.randn(images, 3, 4, generator=random),
        },
        caption_features={
            "ann_feats": text,
            "clip_txt_out_tokens": tokens,
            "text_input_mask": mask,
            "clip_second_last_out": tokens,
            "text_argmax": mask.sum(dim=1) - 1,
            "bert-base_features": text,
        },
    )
