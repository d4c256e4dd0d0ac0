"""`AutoModel` knows our folders as soon as talk2dino is imported, before or after transformers."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from talk2dino import Talk2DINO
from talk2dino.methods.talk2dino.hub.fetch import FetchOptions
from talk2dino.segmenter import ClassQuery

from .test_load import FETCH, REPO, same_model


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    return toy.save_pretrained(tmp_path_factory.mktemp("auto") / "toy", projection_only=True)


def run(root, code):
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, text=True
    )


def test_automodel_loads_a_saved_folder_in_a_fresh_process(root, folder):
    code = (
        "import sys, talk2dino\n"
        "from transformers import AutoModel\n"
        "AutoModel.register\n"
        "assert 'talk2dino.methods.talk2dino.auto' in sys.modules\n"
        "assert 'talk2dino.methods.talk2dino.huggingface' not in sys.modules\n"
        "assert 'timm' not in sys.modules\n"
        f"model = AutoModel.from_pretrained({str(folder)!r})\n"
        "print(type(model).__name__, tuple(model.encode_text('a').shape))"
    )
    result = run(root, code)
    assert result.stdout == "Talk2DinoModel (1, 192)\n", result.stderr


def test_a_transformers_that_was_imported_first_knows_the_model_too(root, folder):
    code = (
        "from transformers import AutoConfig, AutoModel\nAutoModel.register\nimport talk2dino\n"
        f"config = AutoConfig.from_pretrained({str(folder)!r})\n"
        "print(type(config).__name__)\nAutoModel.from_config(config)"
    )
    result = run(root, code)
    assert result.stdout == "Talk2DinoConfig\n", result.stderr
    assert result.stderr.endswith(
        "a Talk2DINO model comes with its weights: use from_pretrained.\n"
    )


@pytest.fixture(scope="module")
def auto(folder):
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder)


def test_the_model_of_transformers_is_the_same_model(auto, toy, tmp_path):
    same_model(auto, toy)
    assert not auto.training and auto.device == torch.device("cpu") and auto.to("cpu") is auto
    assert sum(p.numel() for p in auto.parameters()) > 1_000_000
    window = torch.zeros(1, 3, 56, 56)
    classes = toy.segmenter.embed_classes(["cup"])
    torch.testing.assert_close(
        auto(window, classes), toy.segmenter.window_scores(window, ClassQuery.of_rows(classes))
    )
    again = auto.save_pretrained(tmp_path / "again", projection_only=True)
    assert (again / "config.json").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "weights are float32"),
        ({"device_map": "auto"}, "name one device"),
        ({"quantize": True}, "does not know quantize"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(folder, settings, message):
    from talk2dino.methods.talk2dino.huggingface import Talk2DinoModel

    with pytest.raises(ValueError, match=message):
        Talk2DinoModel.from_pretrained(folder, **settings)


def test_every_option_of_a_download_reaches_the_loader(folder, toy, monkeypatch):
    from transformers import AutoModel

    from talk2dino.methods.talk2dino import huggingface as model

    asked = []

    def load_model(name, device, fetch):
        asked.append((name, fetch))
        return toy.loaded

    monkeypatch.setattr(model, "load_model", load_model)
    AutoModel.from_pretrained(folder, **FETCH)
    model.Talk2DinoModel.from_pretrained(REPO, **FETCH)
    assert asked == [(str(folder), FetchOptions(**FETCH)), (REPO, FetchOptions(**FETCH))]


def test_our_model_takes_its_name_even_if_transformers_knows_it(monkeypatch):
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from talk2dino.methods.talk2dino import auto, autoload

    models = AutoModel._model_mapping
    monkeypatch.setitem(CONFIG_MAPPING._mapping, "talk2dino", "Talk2DinoConfig")
    monkeypatch.setitem(models._reverse_config_mapping, "Talk2DinoConfig", "talk2dino")
    monkeypatch.setitem(models._model_mapping, "talk2dino", "Talk2DinoModel")
    for _ in range(2):
        autoload.register_config()
        autoload.register_model()
    assert type(AutoConfig.for_model("talk2dino")) is auto.Talk2DinoConfig
    assert models[auto.Talk2DinoConfig] is autoload.AutoTalk2Dino


def test_moving_takes_what_transformers_takes_as_long_as_it_is_float32(auto):
    for same in (
        auto.to(dtype=torch.float32),
        auto.to(torch.float32),
        auto.to("cpu", torch.float32),
        auto.to(torch.device("cpu"), non_blocking=True),
        auto.to(torch.zeros(1)),
        auto.float(),
    ):
        assert same is auto


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("float16", lambda model: model.half()),
        ("float16", lambda model: model.to(torch.float16)),
        ("float16", lambda model: model.to(dtype=torch.float16)),
        ("float16", lambda model: model.to(torch.zeros(1, dtype=torch.float16))),
        ("bfloat16", lambda model: model.bfloat16()),
        ("float64", lambda model: model.to("cpu", torch.float64)),
        ("float64", lambda model: model.double()),
    ],
)
def test_another_number_type_is_refused_and_changes_nothing(auto, name, change):
    with pytest.raises(ValueError, match=f"{name} is not supported: weights are float32"):
        change(auto)
    assert {p.dtype for p in auto.parameters()} == {torch.float32}
    assert auto.encode_text("a").dtype == torch.float32


def test_saving_takes_the_habitual_option_and_keeps_an_earlier_save(auto, tmp_path):
    auto.save_pretrained(tmp_path, projection_only=True, safe_serialization=True)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        auto.save_pretrained(tmp_path, projection_only=True)
    auto.save_pretrained(tmp_path, projection_only=True, overwrite=True)
    with pytest.raises(ValueError, match="safe_serialization=False is not supported"):
        auto.save_pretrained(tmp_path / "new", safe_serialization=False)
    assert not (tmp_path / "new").exists()


def test_the_published_layout_loads_through_automodel_without_its_code(toy_folder, auto):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(toy_folder)
    assert type(model) is type(auto) and model.encode_text("a").shape == (1, 192)


def test_a_transformers_that_does_not_suit_only_causes_a_warning(caplog, monkeypatch):
    from talk2dino.methods.talk2dino import autoload

    monkeypatch.setitem(autoload.REGISTRARS, "some.module", lambda: [].register())
    autoload._register("some.module")
    assert "AutoModel will not know Talk2DINO models" in caplog.text


def test_a_part_of_automodel_lives_in_one_place(folder, tmp_path):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder)
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

    model = AutoModel.from_pretrained(folder, background_threshold=0.3)
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert model.segment(picture, "cup", background=True, refine=False).background == 0.3
    model.config.background_threshold = 0.4
    assert model.segment(picture, "cup", background=True, refine=False).background == 0.4
    with pytest.raises(ValueError, match="background_threshold must be a number from 0 to 1"):
        AutoModel.from_pretrained(folder, background_threshold=3)
    config = AutoConfig.from_pretrained(folder)
    config.segmenter["template"] = "full"
    assert AutoModel.from_pretrained(folder, config=config).segmenter.config.template == "full"
    config.segmenter["vision_model"] = "dinov2_vitb14"
    with pytest.raises(ValueError, match="names another vision_model than"):
        AutoModel.from_pretrained(folder, config=config)
    model.config.segmenter["template"] = "full"
    with pytest.raises(ValueError, match="config.segmenter was changed, which has no effect"):
        model.segment(picture, "cup")


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
