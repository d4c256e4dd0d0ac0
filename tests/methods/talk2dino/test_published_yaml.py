"""Reading the published YAML files: strict, but for keys that never had an effect."""

import logging

import pytest

from talk2dino.methods.talk2dino.config import read_published

MODEL = """
model:
  type: DINOText
  model_name: toy
  clip_model_name: toy
  proj_class: toy
  proj_name: toy
"""


@pytest.fixture
def write(tmp_path):
    def write_files(model=MODEL, evaluation="evaluate:\n  task: [voc20]\n"):
        files = tmp_path / "model.yml", tmp_path / "eval.yml"
        for path, text in zip(files, (model, evaluation), strict=True):
            path.write_text(text)
        return files

    return write_files


def test_options_override_both_files(write):
    options = [
        "model.vision_weights=seeded:7",
        "evaluate.bg_thresh=0.52",
        "evaluate.task=[voc,ade]",
    ]
    config, section, _ = read_published(*write(), [*options, "model.with_bg_clean=true"])
    assert config.vision_weights == "seeded:7"
    assert config.clean_background
    assert (section.bg_thresh, section.task) == (0.52, ["voc", "ade"])


def test_keys_without_effect_give_one_warning(write, caplog):
    evaluation = """
_base_: ../default.yml
evaluate:
  task: [voc]
  kp_w: 0.3
  save_logits: null
  pred_qual_path: null
"""
    with caplog.at_level(logging.WARNING):
        read_published(*write(evaluation=evaluation))
    (record,) = caplog.records
    for key in ("_base_", "evaluate.kp_w", "evaluate.save_logits", "evaluate.pred_qual_path"):
        assert key in record.getMessage()


@pytest.mark.parametrize(
    ("model", "evaluation", "options", "message"),
    [
        (MODEL + "  resise_dim: 3\n", "evaluate: {task: [voc]}", [], "Did you mean 'resize_dim'"),
        (MODEL, "evaluate: {task: [voc], bg_tresh: 1}", [], "Did you mean 'bg_thresh'"),
        (MODEL, "evalute: {task: [voc]}", [], "unknown section 'evalute'"),
        (MODEL, "evaluate: {pamr: true}", [], "'task:' is missing"),
        (MODEL, "evaluate: {task: [3]}", [], "task[0] must be str, got 3"),
        (MODEL, "evaluate: {task: [voc], bg_thresh: high}", [], "must be float or null"),
        (MODEL, "evaluate: {task: [voc]}", ["bg_thresh=0.5"], "expected section.key=value"),
        (MODEL, "evaluate: {task: [voc]}", ["evaluate.bg=0.5"], "unknown key 'bg'"),
        (MODEL, "evaluate: {task: [voc]}", ["evaluate.task=[voc"], "not valid YAML"),
        (MODEL, "evaluate: {task: [voc], template: all}", [], "unknown template 'all'"),
    ],
)
def test_anything_else_is_an_error(write, model, evaluation, options, message):
    with pytest.raises(ValueError) as error:
        read_published(*write(model, evaluation), options)
    assert message in str(error.value)


def test_a_missing_evaluation_file_is_explained(write):
    with pytest.raises(ValueError, match="section 'evaluate:' is missing"):
        read_published(write()[0], None)
