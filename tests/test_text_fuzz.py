"""Damaged text in every reader: a sentence, or a value. Never a traceback, never more memory."""

import dataclasses
import json
import os
import random
import shutil

import pytest

from talk2dino.benchmarks.results import read_result
from talk2dino.features.captions import CaptionInput
from talk2dino.methods.ovsegmentor.checkpoints import read_checkpoint
from talk2dino.methods.ovsegmentor.config import get_preset, load_pretraining_recipe
from talk2dino.methods.ovsegmentor.data.prepare import filter_captions, json_to_csv, make_pairs
from talk2dino.methods.ovsegmentor.data.samples import open_rows
from talk2dino.methods.ovsegmentor.data.words import CaptionReader, dictionary_lemma
from talk2dino.methods.talk2dino.config import (
    SegmenterConfig,
    read_published,
    read_segmenter_config,
)
from talk2dino.methods.talk2dino.hub.find import WEIGHT_FIELDS, FoundModel, find_model
from talk2dino.methods.talk2dino.projection import ProjectionConfig
from talk2dino.methods.talk2dino.recipe import load_recipe
from talk2dino.textfiles import read_names

CAPTIONS = {
    "info": {"year": 2014},
    "images": [{"id": n, "file_name": f"{n}.jpg", "coco_url": None} for n in range(3)],
    "annotations": [{"id": n, "image_id": n % 3, "caption": f"a dog {n}"} for n in range(4)],
}
RESULT = {"format": 1, "benchmark": "voc", "mIoU": 0.5, "per_class": {"cat": 0.5}, "seed": None}
ODD = (None, True, -1, 2**70, 1e400, float("nan"), "", "\ud800", "x" * 300, [], [[]], {}, {"": 1})
TABLE = "image_id,caption,entity,pairindex,pairentity\n" + "".join(
    f'{n}.jpg,"a dog, a cat {n}",dog,"[0, 1]","[\'dog\', \'cat\']"\n' for n in range(3)
)
SEEDS = int(os.environ.get("TALK2DINO_FUZZ", 100))  # by hand: some thousands
reader = CaptionReader(dictionary_lemma)


def converted(path):
    """Read a converted model whose weights are an empty file."""
    path.with_name("model.safetensors").touch()
    return read_checkpoint(path.parent)


def replaced(value, random):
    """A copy of JSON data with one value replaced."""
    if random.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return random.choice(ODD)
    key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
    inside = replaced(value[key], random)
    if isinstance(value, dict):
        return {**value, key: inside}
    return [*value[:key], inside, *value[key + 1 :]]


def damaged(data, random):
    """Bytes with a few of them changed, cut off, repeated, or put into something deep."""
    kind = random.randrange(6)
    start, stop = sorted(random.choices(range(len(data) + 1), k=2))
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:stop] + data[start:]
    if kind == 2:
        return data[:start] + data[stop:]
    if kind == 3:
        deep = random.choice([b"[", b'{"a":', b"- ", b"[[],"]) * random.choice([40, 5000])
        return data[:start] + deep + data[start:]
    changed = bytearray(data)
    for _ in range(random.choice([1, 3, 20])):
        changed[random.randrange(len(data))] = random.choice(b"\0\t\n\r\"',:{}[]&*!%-\xff\x1f09")
    return bytes(changed)


def read_table(path):
    open_rows(path, path.parent, reader, pairs=path.stem == "pairs")


def filtered(path):
    shutil.rmtree(path.parent / "parts", ignore_errors=True)
    filter_captions(path, path.parent / "parts", 2)


def folder_config():
    weights = dict.fromkeys(WEIGHT_FIELDS, "included")
    config = SegmenterConfig(projection=ProjectionConfig(), **weights)
    return json.dumps(FoundModel(config, 0.5, "x", {"epochs": 3}).as_json())


def saved(path):
    path.with_name("model.safetensors").touch()
    find_model(str(path.parent))


toy = get_preset("ovsegmentor_toy")
recipe = "model:\n  hidden_layer: true\n  act: tanh\n\ntrain:\n  lr: 1e-4\n  num_epochs: 3\n"
READERS = {
    "captions": ("captions.json", json.dumps(CAPTIONS), lambda p: CaptionInput(p).split(0, 1)),
    "captions of the pretraining": ("captions.json", json.dumps(CAPTIONS), read_table),
    "a table": ("table.csv", TABLE, read_table),
    "a table with pairs": ("pairs.csv", TABLE, read_table),
    "a tsv": ("table.tsv", TABLE.replace(",", "\t"), read_table),
    "a table to filter": ("table.tsv", "a dog\thttp://x/1.jpg\nb\thttp://x/2.jpg\n", filtered),
    "a table to pair": ("t.csv", "image_id,caption,entity\n1,a dog,dog\n2,a cat,cat\n",
                        lambda p: make_pairs(p, p.with_name("out.csv"))),
    "lines of JSON": ("t.json", '{"filename": "a", "caption": "b"}\n' * 3,
                      lambda p: json_to_csv(p, p.with_name("out.csv"))),
    "a recipe": ("recipe.yaml", recipe, load_recipe),
    "a recipe of a segmenter": ("recipe.yaml", recipe, read_segmenter_config),
    "a recipe of the pretraining": ("r.yaml", "model: ovsegmentor_toy\nstage: 1\n"
                                    "data:\n  metafile: a.csv\n", load_pretraining_recipe),
    "a published configuration": ("c.yml", "model: {proj_class: vitb_mlp_infonce}\n"
                                  "evaluate: {task: [voc], pamr: true}\n",
                                  lambda p: read_published(p, p)),
    "a split": ("val.txt", "2007_000033\r\n2007_000042\n\n", read_names),
    "a result": ("result.json", json.dumps(RESULT), read_result),
    "a saved model": ("config.json", folder_config(), saved),
    "a converted model": ("config.json", json.dumps({"model": dataclasses.asdict(toy)}),
                          converted),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_damaged_text_ends_in_a_sentence(name, tmp_path):
    file, text, read = READERS[name]
    path = tmp_path / file
    for n in range(3):
        (tmp_path / f"{n}.jpg").write_bytes(b"")
    for seed in range(SEEDS):
        chance = random.Random(f"{name} {seed}")
        data = damaged(text.encode(), chance)
        if file.endswith(".json") and seed % 2 and name != "lines of JSON":
            data = json.dumps(replaced(json.loads(text), chance)).encode()
        path.write_bytes(data)
        try:
            read(path)
        except (ValueError, OSError) as error:
            assert str(error), f"seed {seed}"
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {data[:300]!r}") from error
