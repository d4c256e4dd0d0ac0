"""Segmenter settings from recipes and from the published model YAML."""

import logging

import pytest
import yaml

from talk2dino.methods.talk2dino.config import (
    SegmenterConfig,
    config_from_model_section,
    read_published,
    read_segmenter_config,
)
from talk2dino.methods.talk2dino.projection import ProjectionConfig

MODEL = {
    "type": "DINOText",
    "model_name": "dinov2_vitb14_reg",
    "proj_class": "vitb_mlp_infonce",
    "proj_name": "vitb_mlp_infonce",
}


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


def config(**changes):
    plain = {
        "projection": ProjectionConfig(),
        "projection_weights": "seeded:0",
        "vision_model": "toy",
        "text_model": "toy",
    }
    return SegmenterConfig(**plain | changes)


def test_a_recipe_gives_its_models_and_the_weights_of_its_name(tmp_path):
    recipe = {
        "model": {"dino_embed_dim": 192, "hidden_layer": True},
        "train": {"lr": 0.001},
        "features": {"vision_model": "toy", "text_model": "toy", "vision_weights": "seeded:3"},
    }
    found = read_segmenter_config(write(tmp_path / "mine.yaml", recipe), pamr=True)
    assert found.projection.dino_embed_dim == 192 and found.projection.hidden_layer is True
    assert (found.vision_model, found.vision_weights, found.text_model) == (
        "toy",
        "seeded:3",
        "toy",
    )
    assert found.projection_weights == "weights/mine.pth"
    assert found.pamr and not found.clean_background and found.input_size == 448


def test_a_published_model_yaml_is_read(tmp_path, root):
    model = MODEL | {
        "clip_model_name": "ViT-B/32",
        "resize_dim": 518,
        "proj_model": "DoubleMLP",
        "with_bg_clean": True,
        "use_avg_text_token": True,
        "keep_cls": True,
        "keep_end_seq": True,
        "vision_weights": "seeded:1",
        "text_weights": "seeded:2",
        "projection_weights": "seeded:3",
    }
    found = read_segmenter_config(write(tmp_path / "dinotext.yml", {"model": model}))
    assert found == SegmenterConfig(
        projection=ProjectionConfig(
            act="tanh",
            hidden_layer=True,
            dino_embed_dim=768,
            num_attn_head=12,
            model_class="DoubleMLP",
        ),
        projection_weights="seeded:3",
        vision_model="dinov2_vitb14_reg",
        vision_weights="seeded:1",
        text_model="ViT-B/32",
        text_weights="seeded:2",
        input_size=518,
        clean_background=True,
        average_tokens=True,
        keep_cls=True,
        keep_end_seq=True,
    )


@pytest.mark.parametrize("weights", [{}, {"projection_weights": "pretrained"}])
@pytest.mark.parametrize("name", ["no_such_weights", "no_such_weights.pth"])
def test_projection_weights_default_to_the_named_file(weights, name):
    found = config_from_model_section(MODEL | weights | {"proj_name": name}, "x.yml")
    assert found.projection_weights == "weights/no_such_weights.pth"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Other"}, "unknown model type 'Other'. Known: DINOText"),
        ({"with_bg_claen": True}, "unknown key 'with_bg_claen'.*mean 'with_bg_clean'"),
        ({"proj_model": "Nothing"}, "unknown model_class 'Nothing'"),
        ({"resize_dim": 0}, "input_size must be at least 1"),
    ],
)
def test_a_wrong_model_section_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_model_section(MODEL | change, "x.yml")


def test_a_model_section_without_its_names_is_refused():
    with pytest.raises(ValueError, match=r"x\.yml: model: 'model_name:', 'proj_name:' are missing"):
        config_from_model_section({"type": "DINOText", "proj_class": "toy"}, "x.yml")


def test_a_model_yaml_with_another_section_is_refused(tmp_path):
    path = write(tmp_path / "x.yml", {"model": MODEL, "evaluate": {}})
    with pytest.raises(ValueError, match=r"unknown section 'evaluate'. Known: model"):
        read_segmenter_config(path)


def test_a_recipe_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"configs/nothing\.yaml"):
        config_from_model_section(MODEL | {"proj_class": "nothing"}, "x.yml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "subzet"}, "unknown template 'subzet'.*'subset'"),
        ({"input_size": 0}, "input_size must be at least 1"),
        (
            {"average_tokens": True, "projection": ProjectionConfig(model_class="CLIPLastLayer")},
            "does not work with CLIPLastLayer",
        ),
        ({"average_tokens": True, "text_model": "bert-base-uncased"}, "has no CLIP tokens"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_check_finds_unknown_models_and_missing_files_without_loading():
    config().check()
    with pytest.raises(ValueError, match="unknown vision model 'dinov4'"):
        config(vision_model="dinov4").check()
    with pytest.raises(ValueError, match="unknown text model 'ViT-X'"):
        config(text_model="ViT-X").check()
    with pytest.raises(FileNotFoundError, match=r"at nowhere\.pth.*README.*train\.py.*seeded"):
        config(projection_weights="nowhere.pth").check()


EVALUATED = """
model:
  type: DINOText
  model_name: toy
  clip_model_name: toy
  proj_class: toy
  proj_name: toy
"""


@pytest.fixture
def published(tmp_path):
    def write_files(model=EVALUATED, evaluation="evaluate:\n  task: [voc20]\n"):
        files = tmp_path / "model.yml", tmp_path / "eval.yml"
        for path, text in zip(files, (model, evaluation), strict=True):
            path.write_text(text)
        return files

    return write_files


def test_options_override_both_files(published):
    options = [
        "model.vision_weights=seeded:7",
        "evaluate.bg_thresh=0.52",
        "evaluate.task=[voc,ade]",
    ]
    config, section, _ = read_published(*published(), [*options, "model.with_bg_clean=true"])
    assert config.vision_weights == "seeded:7"
    assert config.clean_background
    assert (section.bg_thresh, section.task) == (0.52, ["voc", "ade"])


def test_keys_without_effect_give_one_warning(published, caplog):
    evaluation = """
_base_: ../default.yml
evaluate:
  task: [voc]
  kp_w: 0.3
  save_logits: null
  pred_qual_path: null
"""
    with caplog.at_level(logging.WARNING):
        read_published(*published(evaluation=evaluation))
    (record,) = caplog.records
    for key in ("_base_", "evaluate.kp_w", "evaluate.save_logits", "evaluate.pred_qual_path"):
        assert key in record.getMessage()


@pytest.mark.parametrize(
    ("model", "evaluation", "options", "message"),
    [
        (
            EVALUATED + "  resise_dim: 3\n",
            "evaluate: {task: [voc]}",
            [],
            "Did you mean 'resize_dim'",
        ),
        (EVALUATED, "evaluate: {task: [voc], bg_tresh: 1}", [], "Did you mean 'bg_thresh'"),
        (EVALUATED, "evalute: {task: [voc]}", [], "unknown section 'evalute'"),
        (EVALUATED, "evaluate: {pamr: true}", [], "'task:' is missing"),
        (EVALUATED, "evaluate: {task: [3]}", [], "task[0] must be str, got 3"),
        (EVALUATED, "evaluate: {task: [voc], bg_thresh: high}", [], "must be float or null"),
        (EVALUATED, "evaluate: {task: [voc]}", ["bg_thresh=0.5"], "expected section.key=value"),
        (EVALUATED, "evaluate: {task: [voc]}", ["evaluate.bg=0.5"], "unknown key 'bg'"),
        (EVALUATED, "evaluate: {task: [voc]}", ["evaluate.task=[voc"], "not valid YAML"),
        (EVALUATED, "evaluate: {task: [voc], template: all}", [], "unknown template 'all'"),
    ],
)
def test_anything_else_is_an_error(published, model, evaluation, options, message):
    with pytest.raises(ValueError) as error:
        read_published(*published(model, evaluation), options)
    assert message in str(error.value)


def test_a_missing_evaluation_file_is_explained(published):
    with pytest.raises(ValueError, match="section 'evaluate:' is missing"):
        read_published(published()[0], None)
