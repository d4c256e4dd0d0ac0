"""The eight rows, their names, and the published YAML tree against them."""

import dataclasses
import shutil

import pytest

from talk2dino.benchmarks import table
from talk2dino.benchmarks.table import (
    BENCHMARKS,
    DRAWN_WORLD,
    find_benchmark,
    find_benchmarks,
)
from talk2dino.cli.evaluate_published import evaluations_of
from talk2dino.files import find_in_checkout
from talk2dino.methods.registry import find_method
from talk2dino.methods.talk2dino.config import read_published
from talk2dino.methods.talk2dino.method import MODELS, name_of_recipe
from talk2dino.methods.talk2dino.recipe import load_recipe

FOLDERS = ("ade", "cityscapes", "voc", "voc_bg", "context", "context_bg", "stuff", "coco_object")
TASKS = (
    "ade20k",
    "cityscapes",
    "voc20",
    "voc",
    "context59",
    "context",
    "coco_stuff",
    "coco_object",
)
THRESHOLDS = {"voc_bg", "context_bg", "coco_object"}
CLEANED = {"voc_bg", "coco_object"}


def evaluation_file(folder, model, pamr):
    large = "_vitl" if folder in THRESHOLDS and model.endswith("vitl") else ""
    return f"eval_{folder}{large}{'_pamr' if pamr else ''}.yml"


@pytest.mark.parametrize("pamr", [False, True])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_published_pair_resolves_to_its_row(root, folder, model, pamr):
    configs = root / "src" / "open_vocabulary_segmentation" / "configs" / folder
    model_file = configs / f"dinotext_{folder}_{model}_mlp_infonce.yml"
    found = read_published(model_file, configs / evaluation_file(folder, model, pamr))
    (evaluation,) = evaluations_of(*found[:2], name_of_recipe(found[2]))
    row = BENCHMARKS[TASKS[FOLDERS.index(folder)]]
    recipe = load_recipe(find_in_checkout(MODELS[model]))
    config = evaluation.method.config
    large = recipe.model.dino_embed_dim == 1024
    assert evaluation.benchmark == row
    assert row.readme_name == folder
    assert evaluation.method.model == model
    published = 0.54 if large else 0.55
    assert evaluation.method.threshold(row) == (published if row.background else None)
    assert row.background == (folder in THRESHOLDS)
    assert config.clean_background == row.clean_background == (folder in CLEANED)
    assert config.pamr == pamr
    assert config.template == "sub_imagenet_template"
    assert config.input_size == 448
    assert config.projection == recipe.model
    assert config.vision_model == recipe.features.vision_model
    assert config.text_model == recipe.features.text_model
    assert config.projection_weights.endswith(f"{recipe.path.stem}.pth")
    assert not (config.average_tokens or config.keep_cls or config.keep_end_seq)


def test_there_is_no_other_file_in_the_tree(root):
    configs = root / "src" / "open_vocabulary_segmentation" / "configs"
    expected = set()
    for folder in FOLDERS:
        for model in MODELS:
            expected.add(f"{folder}/dinotext_{folder}_{model}_mlp_infonce.yml")
            expected |= {f"{folder}/{evaluation_file(folder, model, p)}" for p in (False, True)}
    found = {str(path.relative_to(configs)) for path in configs.rglob("*.yml")}
    assert found == expected


def test_both_spellings_are_known_and_keys_come_first():
    assert find_benchmark("voc").key == "voc"
    assert find_benchmark("voc_bg").key == "voc"
    assert find_benchmark("context_bg").key == "context"
    assert find_benchmark("ade").key == "ade20k"
    assert find_benchmark("stuff").key == "coco_stuff"
    assert find_benchmark("PascalContextDataset59").key == "context59"
    assert [row.key for row in find_benchmarks("voc, ade,voc_bg")] == ["voc", "ade20k"]
    assert find_benchmarks("all") == list(BENCHMARKS.values())
    assert DRAWN_WORLD not in find_benchmarks("all")


def test_an_unknown_benchmark_is_named_with_a_suggestion():
    with pytest.raises(ValueError, match="unknown benchmark 'citiscapes'.*Did you mean"):
        find_benchmarks("voc,citiscapes")
    with pytest.raises(ValueError, match="no benchmark named"):
        find_benchmarks(" , ")


def test_a_file_in_the_folder_is_a_benchmark_but_no_part_of_all(tmp_path, monkeypatch):
    shutil.copytree(table._FOLDER, tmp_path / "datasets")
    monkeypatch.setattr(table, "_FOLDER", tmp_path / "datasets")
    mine = "images: i\nlabels: l\nclasses: [cat, dog]\n"
    (tmp_path / "datasets" / "mine.yaml").write_text(mine)
    assert find_benchmark("mine").classes == ("cat", "dog")
    assert [row.key for row in find_benchmarks("all,mine")] == [*BENCHMARKS, "mine"]
    with pytest.raises(ValueError, match="Known: .*mine"):
        find_benchmark("your")


def test_the_files_of_benchmarks_are_the_benchmarks_and_nobody_elses(tmp_path, monkeypatch):
    assert find_benchmark(str(table._FOLDER / "voc.yaml")) == BENCHMARKS["voc"]
    copy = shutil.copy(table._FOLDER / "voc.yaml", tmp_path / "voc.yaml")
    for name in ("classes", "palette"):
        shutil.copy(table._FOLDER / f"voc_{name}.txt", tmp_path)
    with pytest.raises(ValueError, match="voc is the name of a benchmark.*Give another one"):
        find_benchmark(str(copy))


def test_methods_have_no_published_number_for_a_row_that_is_added(monkeypatch):
    mine = dataclasses.replace(BENCHMARKS["voc"], name="mine", readme_name="mine")
    method = find_method("vitb", {"weights": "seeded:0"})
    numbers = {key: method.published_miou(row) for key, row in BENCHMARKS.items()}
    monkeypatch.setattr(table, "BENCHMARKS", {"mine": mine, **BENCHMARKS})
    assert table.find_benchmarks("all")[0] == mine
    assert (method.published_miou(mine), method.threshold(mine)) == (None, 0.55)
    assert {key: method.published_miou(row) for key, row in BENCHMARKS.items()} == numbers


@pytest.mark.parametrize("text", ["lemon\napple", "\ufefflemon\r\napple\r\n", "lemon\napple\n\n"])
def test_a_drawn_world_brings_its_own_class_names_in_their_colours(tmp_path, text):
    listing = tmp_path / DRAWN_WORLD.class_file
    assert find_benchmark("toy", tmp_path) is DRAWN_WORLD
    listing.parent.mkdir(parents=True)
    listing.write_bytes(text.encode())
    row = find_benchmark("toy", tmp_path)
    assert row.classes == ("lemon", "apple")
    assert row.palette == DRAWN_WORLD.palette[1::-1]
    listing.write_text("lemon\norange\n")
    assert find_benchmark("toy", tmp_path).palette == ()  # an unknown one: generated for all
