"""The eight rows, their names, and the published YAML tree against them."""

import pytest

from talk2dino.benchmarks.table import (
    BENCHMARKS,
    DRAWN_WORLD,
    MODELS,
    find_benchmark,
    find_benchmarks,
    published_miou,
)
from talk2dino.cli.evaluate_published import evaluations_of
from talk2dino.files import find_in_checkout
from talk2dino.methods.talk2dino.published_yaml import read_published
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
    read = read_published(model_file, configs / evaluation_file(folder, model, pamr))
    (evaluation,) = evaluations_of(read)
    row = BENCHMARKS[TASKS[FOLDERS.index(folder)]]
    recipe = load_recipe(find_in_checkout(MODELS[model]))
    config = evaluation.method.config
    large = recipe.model.dino_embed_dim == 1024
    assert evaluation.benchmark == row
    assert row.readme_name == folder
    assert read.model_name == model
    assert evaluation.bg_thresh == row.threshold(large)
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


@pytest.mark.parametrize(
    ("key", "model", "pamr", "miou"),
    [
        ("voc", "vitb", False, 61.5),
        ("ade20k", "vitl", True, 22.9),
        ("voc20", "vitl", True, 89.8),
        ("coco_object", "vitb", True, 45.1),
        ("context59", "dinov3_vitb", False, None),
    ],
)
def test_published_numbers(key, model, pamr, miou):
    assert published_miou(BENCHMARKS[key], model, pamr) == miou
    assert published_miou(DRAWN_WORLD, model, pamr) is None
