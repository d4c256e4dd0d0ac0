"""`AutoModel` knows our folders as soon as talk2dino is imported, before or after transformers."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from talk2dino import Talk2DINO
from talk2dino.methods.talk2dino import autoload
from talk2dino.methods.talk2dino.hub import find

from .test_find import FETCH, same_model


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    return toy.save_pretrained(tmp_path_factory.mktemp("auto") / "toy", projection_only=True)


def test_automodel_loads_a_saved_folder_in_a_fresh_process(root, folder):
    code = (
        "import sys, talk2dino\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "from transformers import AutoConfig, AutoModel\n"
        f"config = AutoConfig.from_pretrained({str(folder)!r})\n"
        "AutoModel.register\n"
        "assert 'timm' not in sys.modules\n"
        f"model = AutoModel.from_pretrained({str(folder)!r})\n"
        "print(type(config).__name__, type(model).__name__, tuple(model.encode_text('a').shape))"
    )
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, text=True
    )
    assert result.stdout == "Talk2DinoConfig Talk2DINO (1, 192)\n", result.stderr


def test_a_transformers_that_was_imported_first_knows_the_model_too(folder, monkeypatch):
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {})
    monkeypatch.setattr(AutoModel._model_mapping, "_extra_content", {})
    autoload.register_with_transformers()
    config = AutoConfig.from_pretrained(folder)
    assert type(config).__name__ == "Talk2DinoConfig"
    with pytest.raises(ValueError, match="comes with its weights: use from_pretrained"):
        AutoModel.from_config(config)


@pytest.fixture(scope="module")
def auto(folder):
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder)


def test_the_model_of_transformers_is_the_same_model(auto, toy):
    same_model(auto, toy)
    assert not auto.training and auto.device == torch.device("cpu")
    assert sum(p.numel() for p in auto.parameters()) > 1_000_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "weights are float32"),
        ({"quantize": True}, "does not know quantize"),
        ({"background_threshold": 3}, "background_threshold must lie in"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(folder, settings, message):
    from transformers import AutoModel

    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(folder, **settings)


def test_every_option_of_a_download_reaches_the_loader(folder, monkeypatch):
    from transformers import AutoModel

    asked, found = [], find.find_model(str(folder))

    def find_model(name, **download):
        asked.append((name, download))
        return found

    monkeypatch.setattr(find, "find_model", find_model)
    AutoModel.from_pretrained(folder, device_map="cpu", **FETCH)
    assert asked == [(str(folder), FETCH)]


def test_our_model_takes_its_name_even_if_transformers_knows_it(monkeypatch):
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    models = AutoModel._model_mapping
    monkeypatch.setitem(CONFIG_MAPPING._mapping, "talk2dino", "Talk2DinoConfig")
    monkeypatch.setitem(models._reverse_config_mapping, "Talk2DinoConfig", "talk2dino")
    monkeypatch.setitem(models._model_mapping, "talk2dino", "Talk2DinoModel")
    for _ in range(2):
        autoload.register_with_transformers()
    assert type(AutoConfig.for_model("talk2dino")).__module__ == autoload.__name__
    assert models[type(AutoConfig.for_model("talk2dino"))] is autoload.AutoTalk2Dino


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("float16", lambda model: model.half()),
        ("float16", lambda model: model.to(torch.zeros(1, dtype=torch.float16))),
        ("float64", lambda model: model.to("cpu", torch.float64)),
    ],
)
def test_another_number_type_is_refused_and_changes_nothing(auto, name, change):
    with pytest.raises(ValueError, match=f"{name} is not supported: weights are float32"):
        change(auto)
    assert {p.dtype for p in auto.parameters()} == {torch.float32}
    assert auto.to("cpu", torch.float32) is auto


def test_the_published_layout_loads_through_automodel_without_its_code(toy_folder, auto):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(toy_folder)
    assert type(model) is type(auto) and model.encode_text("a").shape == (1, 192)


def test_a_transformers_that_does_not_suit_only_causes_a_warning(caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, autoload._MODEL, None)
    autoload._register(autoload._MODEL)
    assert "AutoModel will not know Talk2DINO models" in caplog.text


def test_a_part_lives_in_one_place(toy):
    model = copy.deepcopy(toy)
    for below in (False, True):
        owner = model.segmenter if below else model
        before, other = model.encode_text("a"), copy.deepcopy(model.projection)
        with torch.no_grad():
            other.linear_layer.bias.add_(0.01)
        owner.projection = other
        found = model.state_dict()["projection.linear_layer.bias"]
        assert torch.equal(found, other.linear_layer.bias) and model.projection is other
        assert not torch.equal(model.encode_text("a"), before)
    copied = copy.deepcopy(model)
    assert copied.segmenter.projection is copied.projection is not model.projection


def test_the_configuration_that_is_given_is_used_or_refused(folder):
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder)
    config.segmenter["template"], config.background_threshold = "full", 0.3
    model = AutoModel.from_pretrained(folder, config=config)
    assert model.segmenter.config.template == "full" and model.config is config
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert model.segment(picture, "cup", background=True, refine=False).background == 0.3
    for name in ("projection_weights", "vision_weights", "text_weights"):
        config.segmenter.pop(name, None)
    assert AutoModel.from_pretrained(folder, config=config).segmenter.config.template == "full"
    config.segmenter["vision_model"] = "dinov2_vitb14"
    with pytest.raises(ValueError, match="names another vision_model than"):
        AutoModel.from_pretrained(folder, config=config)


@pytest.mark.parametrize("name", ["state.pth", "folder/pytorch_model.bin", "m.safetensors"])
def test_a_saved_state_dict_is_a_model_by_its_names(auto, toy, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    state = auto.state_dict() if "bin" not in name else toy.segmenter.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    place = path if path.parent == tmp_path else path.parent
    found = Talk2DINO.from_pretrained(place, device="cpu")
    assert torch.equal(found.encode_text("a"), auto.encode_text("a"))
