"""Text extraction: trimmed and sorted batches against 77 positions for every caption."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch

from speed.case import LITERAL, SHIPPED, Case, Step

CAPTIONS = 2000
TOKENIZED = 20_000
WHO = """man woman boy girl child person dog cat horse bird zebra elephant giraffe cow bear surfer
skateboarder skier player chef couple bus train truck motorcycle bicycle boat clock pizza sandwich
kitchen bathroom vase laptop umbrella kite sheep toddler policeman bench"""
KIND = """young old small large white black brown red blue yellow striped wooden colorful tall
smiling lonely busy wet dirty elderly hungry sleepy parked vintage furry plastic"""
DOING = """standing near|looking at|lying on|waiting behind|eating|jumping over|resting under|
playing beside|leaning against|running past|sleeping next to|posing with|carrying|holding|riding|
flying above|surrounded by|covered with|reaching for|sitting on|walking towards"""
WHERE = """in a field|on a city street|at the beach|in a small room|on top of a table|by the river|
in front of a building|on a snowy slope|under a cloudy sky|in the background|during the day|
on the side of a road|at a train station|inside a restaurant|on a tennis court|at night|
in a parking lot|near some tall trees|while people watch|next to a window"""


def captions(count: int = CAPTIONS) -> list[str]:
    """Distinct sentences as long as COCO's: 9 to 14 words, on average 11.5, or 14 tokens."""
    drawn = random.Random(0)
    who, kind = WHO.split(), KIND.split()
    doing, where = ([part.strip() for part in text.split("|")] for text in (DOING, WHERE))
    found: dict[str, None] = {}
    while len(found) < count:
        parts = ["A", drawn.choice(kind), drawn.choice(who), drawn.choice(doing)]
        parts += [drawn.choice(["a", "the", "two", "some"]), drawn.choice([*kind, ""])]
        parts += [drawn.choice(who), drawn.choice(where)]
        words = " ".join(parts).split()
        if 9 <= len(words) <= 14:
            found[" ".join(words) + drawn.choice([".", ".", ""])] = None
    return list(found)


def _inputs(folder: Path) -> None:
    texts = captions()
    annotations = [{"id": n, "image_id": n // 5, "caption": text} for n, text in enumerate(texts)]
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range((len(texts) + 4) // 5)]
    content = {"images": images, "annotations": annotations}
    (folder / "captions.json").write_text(json.dumps(content))


def _shipped(model: str, device: str, folder: Path) -> Step:
    from talk2dino.features.captions import CaptionInput
    from talk2dino.features.job import Job
    from talk2dino.features.text import TextExtraction

    extraction = TextExtraction(model=model, weights="seeded:0", device=device)
    _ = extraction.models  # loaded before anything is timed
    out = folder / f"{Path(model).name}.pth"

    def step() -> torch.Tensor:
        data = CaptionInput(folder / "captions.json", need_images=False)
        with Job(data, extraction, out, overwrite=True) as job:
            features = job.make(0)
            assert features is not None
            return features.caption_features["ann_feats"].clone()

    return step


def _literal(model: str, device: str, folder: Path) -> Step:
    from talk2dino.backbones.text import TextEncoder, load_text
    from tests.literal.text import extract

    content = json.loads((folder / "captions.json").read_text())
    texts = [annotation["caption"] for annotation in content["annotations"]]
    encoder = load_text(model, "seeded:0", device)
    assert isinstance(encoder, TextEncoder)
    state, heads = dict(encoder.model.state_dict()), encoder.model.heads

    def step() -> torch.Tensor:
        return torch.stack([found["ann_feats"] for found in extract(texts, state, heads)])

    return step


def _case(model: str, title: str) -> Case:
    return Case(
        f"text extraction, {CAPTIONS:,} captions, {title}, from JSON to feature file",
        {
            SHIPPED: lambda device, folder: _shipped(model, device, folder),
            LITERAL: lambda device, folder: _literal(model, device, folder),
        },
        inputs=_inputs,
        targets={LITERAL: 4.0},
        work=CAPTIONS,
        unit="captions",
    )


def _tokens(device: str, folder: Path) -> Step:
    from talk2dino.backbones.text import _WORD_IDS, tokenize

    texts = captions(TOKENIZED)

    def step() -> torch.Tensor:
        _WORD_IDS.clear()
        return tokenize(texts, 77)

    return step


def _literal_tokens(device: str, folder: Path) -> Step:
    import open_clip

    texts, tokenizer = captions(TOKENIZED), open_clip.SimpleTokenizer(context_length=77)
    return lambda: tokenizer(texts)


TOKENS = Case(
    f"tokenising {TOKENIZED:,} captions, from an empty cache, against open_clip's",
    {SHIPPED: _tokens, LITERAL: _literal_tokens},
    targets={LITERAL: 5.0},
    work=TOKENIZED,
    unit="captions",
)
CASES = {
    "text": _case("ViT-B/16", "CLIP ViT-B/16"),
    "text_toy": _case("toy", "toy encoder"),
    "tokens": TOKENS,
}
