"""What the page says of a model: the same as the Python API, which loads it."""

import shutil

import pytest
import torch
from huggingface_hub import constants

from talk2dino import Talk2DINO
from talk2dino.app.request import Limits, Models, find_entry, segment
from talk2dino.files import file_sha256
from talk2dino.methods.registry import METHODS
from talk2dino.methods.talk2dino.hub.find import TOY_THRESHOLD, find_model

CPU = torch.device("cpu")
REPO = "someone/a-model"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The folder of a saved toy model."""
    folder = tmp_path_factory.mktemp("saved") / "toy"
    return Talk2DINO.from_pretrained("toy", device="cpu").save_pretrained(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The file of a projection as if trained with the toy pair, with its summary."""
    folder = tmp_path_factory.mktemp("trained")
    torch.save(Talk2DINO.from_pretrained("toy").projection.state_dict(), folder / "mine.pth")
    models = '"features": {"vision_model": "toy", "text_model": "toy"}'
    settings = ", ".join(
        f'"model.{key}": {value}'
        for key, value in (("hidden_layer", "true"), ("dino_embed_dim", 192), ("num_attn_head", 3))
    )
    (folder / "mine.json").write_text(f'{{"settings": {{{settings}}}, {models}}}')
    return folder / "mine.pth"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def downloaded(untrained, cache):
    """It holds `someone/a-model`."""
    repo = cache / "models--someone--a-model"
    snapshot = repo / "snapshots" / ("0" * 40)
    for folder in (repo / "refs", repo / "blobs", snapshot):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(snapshot.name)
    for source in untrained.iterdir():
        blob = repo / "blobs" / file_sha256(source)
        shutil.copy(source, blob)
        (snapshot / source.name).symlink_to(blob)


def test_an_untrained_model_of_the_hub_is_shown_as_one(downloaded):
    entry = find_entry(REPO)
    assert entry.rules.threshold == find_model(REPO).background_threshold
    assert "untrained" in entry.notice


def test_a_repository_that_cannot_be_downloaded_is_refused_before_the_page_opens(cache):
    with pytest.raises(RuntimeError, match=f"could not download {REPO}"):
        find_entry(REPO)


def test_a_folder_brings_its_threshold_and_says_if_it_is_untrained(untrained):
    entry = find_entry(str(untrained))
    assert entry.rules.threshold == TOY_THRESHOLD
    assert "untrained" in entry.notice


def test_a_folder_without_our_configuration_tells_by_its_tensors(untrained, tmp_path):
    shutil.copy(untrained / "model.safetensors", tmp_path)
    entry = find_entry(str(tmp_path))
    assert entry.rules.threshold == find_model(str(tmp_path)).background_threshold
    assert "drawn pictures of apple" in entry.notice


def test_a_file_says_what_its_folder_would_say(trained, tmp_path):
    entry = find_entry(str(trained))
    assert entry.rules.threshold == find_model(str(trained)).background_threshold
    assert "drawn pictures of apple" in entry.notice
    folder = Talk2DINO.from_pretrained(str(trained)).save_pretrained(tmp_path / "mine")
    saved = find_entry(str(folder))
    assert saved.rules.threshold == entry.rules.threshold
    assert "drawn pictures of apple" in saved.notice


@pytest.mark.parametrize(
    ("name", "threshold"),
    [("vitb", 0.55), ("vitl", 0.54), ("lorebianchi98/Talk2DINO-ViTL", 0.54)],
)
def test_published_models_have_their_published_thresholds(name, threshold):
    entry = find_entry(name)
    assert (entry.rules.threshold, entry.notice) == (threshold, "")


def test_a_folder_in_weights_speaks_for_a_short_name(untrained, tmp_path, monkeypatch):
    shutil.copytree(untrained, tmp_path / "weights" / "vitl")
    monkeypatch.chdir(tmp_path)
    entry = find_entry("vitl")
    assert entry.rules.threshold == find_model("vitl").background_threshold == 0.54
    assert "untrained" in entry.notice


def test_configured_models_say_what_their_colours_are_worth(root, trained):
    recipe = str(root / "configs" / "toy.yaml")
    notice = find_entry(f"{recipe}=seeded:0").notice
    assert f"“{recipe}=seeded:0” has random, untrained" in notice
    assert "drawn pictures of apple" in find_entry(f"{recipe}={trained}").notice
    large = str(root / "configs" / "vitl_mlp_infonce.yaml")
    entry = find_entry(f"{large}={trained}")
    assert (entry.rules.threshold, entry.notice) == (0.54, "")


TOYS = [next(name for name in names if name.endswith("toy")) for names in METHODS.values()]


@pytest.mark.parametrize("name", TOYS)
def test_every_method_has_a_place_on_the_page(name, small_photo, uploads):
    entry = find_entry(f"{name}=seeded:0")
    assert "untrained" in entry.notice
    asked = (small_photo, "cup, spoon", entry.name)
    *_, done = segment(Models([entry], CPU), Limits(max_side=64), *asked, refine=())
    assert done.segmentation.names == ("cup", "spoon")
    assert bool(done.groups) == entry.rules.groups


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vitbb", "unknown model 'vitbb'.*Did you mean 'vitb'"),
        ("ovsegmentor_vitbb", "Did you mean 'ovsegmentor_vitb'"),
        ("no/such/model", "unknown model 'no/such/model'"),
        ("mine.pth", "no file or folder mine.pth"),
        ("two words/model", "unknown model 'two words/model'"),
        ("{}", "holds no model.safetensors"),
        ("{}/notes.pth", "notes.pth .*is not a torch file"),
        ("{}/torn/", "model.safetensors is damaged, cut short"),
        ("{}/odd/", "config.json is not JSON"),
        ("{}/unknown/", "unknown vision model 'dinov9'"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused_before(name, message, untrained, tmp_path):
    (tmp_path / "notes.pth").write_text("no weights")
    config = (untrained / "config.json").read_text()
    unknown = config.replace('"vision_model": "toy"', '"vision_model": "dinov9"')
    for folder, text in (("torn", config), ("odd", "{"), ("unknown", unknown)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(text)
        weights = tmp_path / folder / "model.safetensors"
        weights.symlink_to(untrained / "model.safetensors")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.unlink()
    weights.write_bytes(b"\0" * 100)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_entry(name.format(tmp_path))


@pytest.mark.parametrize("file", ["vitb_mlp_infonce.pth", "vitb/readme.txt"])
def test_wrong_weights_under_a_published_name_are_refused(file, tmp_path, monkeypatch):
    path = tmp_path / "weights" / file
    path.parent.mkdir(parents=True)
    path.write_text("no weights")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=r"not the published|holds no model"):
        find_entry("vitb")
