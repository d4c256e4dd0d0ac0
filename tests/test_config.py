"""Settings are read strictly, and every refusal says what to do."""

import pytest

from talk2dino.config import build, check_name
from talk2dino.methods.talk2dino.projection import ProjectionConfig
from talk2dino.methods.talk2dino.recipe import FeatureConfig, TrainConfig, load_recipe
from talk2dino.textfiles import read_yaml


def write(tmp_path, text):
    path = tmp_path / "vitb.yaml"
    path.write_text(text)
    return path


def test_a_known_name_is_returned_and_an_unknown_one_is_answered_with_a_suggestion():
    assert check_name("loss", "infonce", ["infonce", "triplet"]) == "infonce"
    message = r"unknown loss 'infonse'\. Known: infonce, triplet\. Did you mean 'infonce'\?"
    with pytest.raises(ValueError, match=message):
        check_name("loss", "infonse", ["infonce", "triplet"])
    with pytest.raises(ValueError, match=r"Known: infonce\.$"):
        check_name("loss", "zzz", ["infonce"])


def test_a_misspelt_key_names_the_file_and_the_right_key(tmp_path):
    path = write(tmp_path, "model: {hiden_layer: true}")
    with pytest.raises(ValueError, match=r"vitb.yaml: unknown key 'hiden_layer'. Did you mean"):
        load_recipe(path)


def test_a_misspelt_section_is_refused(tmp_path):
    path = write(tmp_path, "model: {}\ntrian: {lr: 1}")
    with pytest.raises(ValueError, match=r"unknown section 'trian'.*Did you mean 'train'"):
        load_recipe(path)


def test_a_recipe_needs_a_model_section(tmp_path):
    with pytest.raises(ValueError, match="section 'model:' is missing"):
        load_recipe(write(tmp_path, "train: {lr: 1.0}"))


def test_sections_left_out_have_defaults(tmp_path):
    recipe = load_recipe(write(tmp_path, "model: {act: null, hidden_layer: 2}\ntrain:\n"))
    assert recipe.train == TrainConfig()
    assert recipe.features == FeatureConfig()
    assert recipe.model.hidden_layer == 2
    assert recipe.model.act is None


def test_numbers_written_as_yaml_reads_them_are_understood():
    assert build(TrainConfig, {"lr": "1e-4"}, "x.yaml").lr == pytest.approx(1e-4)
    assert build(TrainConfig, {"lr": 1}, "x.yaml").lr == 1.0
    assert build(ProjectionConfig, {"hidden_layer": True}, "x.yaml").hidden_layer == 1


@pytest.mark.parametrize(
    ("cls", "key", "value", "message"),
    [
        (TrainConfig, "lr", "fast", "lr must be float, got 'fast'"),
        (TrainConfig, "lr", True, "lr must be float, got True"),
        (TrainConfig, "lr", 0, "lr must be positive"),
        (TrainConfig, "lr", "inf", "lr must be positive and finite"),
        (TrainConfig, "batch_size", 0, "batch_size must be at least 1"),
        (TrainConfig, "batch_size", 1.5, "batch_size must be int"),
        (TrainConfig, "ltype", "infonse", "unknown loss .* Did you mean 'infonce'"),
        (ProjectionConfig, "act", "tahn", "unknown activation .* Did you mean 'tanh'"),
        (ProjectionConfig, "act", 3, "act must be str or null"),
        (ProjectionConfig, "alignment_strategy", "max", "Known: max_score, sampled_attn_map"),
        (ProjectionConfig, "model_class", "MLP", "Known: ProjectionLayer, Visual"),
        (ProjectionConfig, "weight_attn_heads", "dynamic", "Known: static, conditioned"),
        (ProjectionConfig, "alpha", 2.0, "alpha must lie in"),
        (ProjectionConfig, "hidden_layer", -1, "hidden_layer must be at least 0"),
        (ProjectionConfig, "hidden_embed_dim", 0, "hidden_embed_dim must be at least 1"),
        (FeatureConfig, "crop_dim", 0, "crop_dim must be at least 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_file(cls, key, value, message):
    with pytest.raises(ValueError, match=f"x.yaml.*{message}"):
        build(cls, {key: value}, "x.yaml")


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        ("", "margin: 0.3", "margin has no effect with ltype: infonce, it belongs to triplet"),
        ("", "ltype: infonce, max_violation: true", "max_violation has no effect"),
        ("", "ltype: triplet, temperature: 0.1", "temperature has no effect .* to infonce"),
        ("", "loss: 3", "unknown key 'loss'.*Known: lr, .*temperature"),
        ("", "temprature: 0.1", "unknown key 'temprature'. Did you mean 'temperature'"),
        ("", "temperature: warm", "temperature must be float"),
        ("", "temperature: 0", "temperature must be positive and finite, got 0"),
        ("", "ltype: triplet, margin: -1", "margin must be finite and not negative"),
        ("", "ltype: triplet, margin: .nan", "margin must be finite"),
        ("", "ltype: triplet, max_violation: 2", "max_violation must be bool"),
        ("", "ltype: infonse, margin: 0.3", "unknown loss .* Did you mean 'infonce'"),
        ("alpha: 0.5", "", "alpha has no effect with alignment_strategy: max_score"),
        ("hidden_embed_dim: 5", "", "hidden_embed_dim has no effect with model_class: Projection"),
        ("hidden_layer: 2, model_class: VisualProjectionLayer", "", "hidden_layer has no effect"),
    ],
)
def test_a_key_without_effect_and_a_wrong_one_of_the_loss_are_refused(
    tmp_path, model, train, message
):
    path = write(tmp_path, f"model: {{{model}}}\ntrain: {{{train}}}")
    with pytest.raises(ValueError, match=f"vitb.yaml: .*{message}"):
        load_recipe(path)


def test_keys_of_the_chosen_loss_and_strategy_are_read(tmp_path):
    path = write(
        tmp_path,
        "model: {alignment_strategy: nucleus-sampling, alpha: 0.5}\ntrain: {temperature: 1e-1}",
    )
    recipe = load_recipe(path)
    assert recipe.model.alpha == 0.5
    assert recipe.train.loss == {"temperature": 0.1}
    assert recipe.train.as_dict()["temperature"] == 0.1
    path = write(tmp_path, "model: {}\ntrain: {ltype: triplet, margin: 1}")
    assert load_recipe(path).train.loss == {"margin": 1.0, "max_violation": True}
    assert TrainConfig().as_dict()["temperature"] == 0.07


def test_rules_across_fields():
    with pytest.raises(ValueError, match="weight_attn_heads works with ProjectionLayer, not"):
        ProjectionConfig(weight_attn_heads="static", model_class="DoubleMLP")


def test_a_section_that_is_no_mapping_is_refused():
    with pytest.raises(ValueError, match=r"expected 'key: value' lines, found \[1\]"):
        build(TrainConfig, [1], "x.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "found nothing"), ("- a\n- b", "found a list"), ("a: [", "is not valid YAML")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_yaml(write(tmp_path, text))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\x80\x81")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        read_yaml(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.yaml: no such file"):
        read_yaml(tmp_path / "absent.yaml")


def test_yaml_cannot_run_code(tmp_path):
    with pytest.raises(ValueError, match="is not valid YAML"):
        read_yaml(write(tmp_path, "a: !!python/object/apply:os.system ['true']"))
