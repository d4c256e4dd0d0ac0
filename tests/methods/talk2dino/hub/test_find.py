"""Loading from names, folders, files and the Hub's cache, and what is said when that fails."""

import json
import shutil

import httpx
import pytest
import timm
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from talk2dino import Talk2DINO
from talk2dino.backbones.checkpoints import state_shapes
from talk2dino.backbones.seeded import seeded_state
from talk2dino.files import find_in_checkout
from talk2dino.methods.talk2dino.hub import find
from talk2dino.methods.talk2dino.hub.find import (
    PUBLISHED,
    fetch_folder,
    find_model,
)

from .conftest import projection_state, published_layout, save

NAMES = ["cup", "silver spoon"]
REPO = "someone/a-model"


def load_model(name, **settings):
    return Talk2DINO.from_pretrained(name, "cpu", **settings)


def same_model(one, other, tolerance=1e-6):
    picture = torch.arange(3 * 56 * 56, dtype=torch.int64).remainder(256).to(torch.uint8)
    pictures = picture.reshape(3, 56, 56)
    torch.testing.assert_close(
        one.encode_image(pictures), other.encode_image(pictures), rtol=1e-4, atol=1e-4
    )
    ours, theirs = (model.segmenter.embed_classes(NAMES) for model in (one, other))
    assert float((ours - theirs).norm() / theirs.norm()) <= tolerance


def test_the_published_layout_loads_with_fp16_clip(toy, toy_folder):
    model = Talk2DINO.from_pretrained(toy_folder, device="cpu")
    same_model(model, toy, tolerance=2e-3)  # CLIP is stored in half precision
    assert model.segmenter.text.model.text_projection.dtype == torch.float32
    assert model.is_trained and model.loaded.background_threshold == 0.55


def test_a_single_file_of_a_whole_model_loads_too(toy, toy_folder):
    model = Talk2DINO.from_pretrained(toy_folder / "model.safetensors", device="cpu")
    assert model.segmenter.config.vision_model == "toy"
    assert torch.equal(
        model.encode_text("a cup"), Talk2DINO.from_pretrained(toy_folder).encode_text("a cup")
    )


def test_dinov3_in_timm_naming_loads_with_renamed_layer_scales(toy_text, tmp_path):
    name = "vit_small_patch16_dinov3.lvd1689m"
    settings = {"num_classes": 0, "global_pool": "token", "dynamic_img_size": True}
    backbone = timm.create_model(name, pretrained=False, **settings)
    state = seeded_state(0, state_shapes(backbone))
    backbone.load_state_dict(state)
    renamed = {key.replace(".gamma_", ".weight_"): value for key, value in state.items()}
    assert set(renamed) != set(state)
    save(published_layout(renamed, toy_text, 384), tmp_path / "model.safetensors")
    model = Talk2DINO.from_pretrained(tmp_path, device="cpu")
    assert model.segmenter.config.vision_model == name
    loaded = model.segmenter.vision.model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in backbone.state_dict().items())
    assert model.encode_image(torch.zeros(3, 32, 32, dtype=torch.uint8)).shape == (1, 784, 384)


def test_a_trained_projection_loads_by_its_summary(tmp_path):
    path = tmp_path / "mine.pth"
    torch.save(projection_state(192), path)
    summary = {
        "command": "python train.py --model configs/toy.yaml",
        "features": {"vision_model": "dinov2_vitb14", "text_model": "toy", "resize_dim": 224},
        "trained_on": {"vision": {"model": "toy", "weights": "seeded:0"}},
        "settings": {"model.hidden_layer": True, "model.dino_embed_dim": 192, "lr": 1},
    }
    path.with_suffix(".json").write_text(json.dumps(summary))
    model = Talk2DINO.from_pretrained(path, device="cpu")
    assert model.segmenter.config.vision_model == "toy"
    assert model.loaded.training["command"].startswith("python train.py")
    assert model.is_trained


@pytest.mark.parametrize("text", ["", "[" * 200_000, '{"settings": 1, "settings": 2}'])
def test_a_damaged_summary_is_named_instead_of_asking_for_a_recipe(tmp_path, text):
    path = tmp_path / "mine.pth"
    torch.save(projection_state(192), path)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.json.*Remove it, or train again"):
        load_model(str(path))


def test_a_projection_without_a_summary_needs_its_recipe(toy, root, tmp_path):
    path = tmp_path / "mine.pth"
    torch.save(projection_state(192, hidden="linear_layer2"), path)
    with pytest.raises(ValueError, match="projection into 192 dimensions.*pass config="):
        load_model(str(path))
    model = Talk2DINO.from_pretrained(path, device="cpu", config=root / "configs" / "toy.yaml")
    same_model(model, toy)
    with pytest.raises(ValueError, match="config= belongs to the file of a projection"):
        load_model("toy", config="configs/toy.yaml")


@pytest.mark.parametrize("short", PUBLISHED)
def test_a_published_projection_is_known_by_its_name(short, tmp_path):
    model = PUBLISHED[short]
    path = tmp_path / f"{model.recipe}.pth"
    torch.save(projection_state(model.config("x").projection.dino_embed_dim), path)
    found = find_model(str(path))
    assert found.config == model.config(str(path))
    assert found.background_threshold == (0.54 if "vitl" in short else 0.55)


def test_published_files_are_known_by_their_content(tmp_path):
    shared = find_in_checkout("../shared/parity/published_weights/vitb_mlp_infonce.pth")
    if not shared.is_file():
        pytest.skip("the published file is not here")
    shutil.copy(shared, tmp_path / "renamed.pth")
    assert find_model(str(tmp_path / "renamed.pth")).config.vision_model == "dinov2_vitb14_reg"


def test_a_file_with_another_checksum_is_not_taken_for_the_published_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    torch.save(projection_state(768), tmp_path / "weights" / "vitb_mlp_infonce.pth")
    with pytest.raises(ValueError, match="not the published file.*load it by its path"):
        load_model("vitb")
    torch.save(projection_state(768), tmp_path / "weights" / "vitl_mlp_infonce.pth")
    with pytest.raises(ValueError, match="wrong shapes"):
        load_model("vitl")  # no checksum is recorded; the shapes tell


def test_a_short_name_takes_the_folder_in_weights(tmp_path, monkeypatch, toy_folder):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy_folder, tmp_path / "weights" / "vitl")
    found = find_model("vitl")
    assert found.origin == "vitl" and found.background_threshold == 0.54


@pytest.fixture
def cache(tmp_path, toy_folder):
    """The Hugging Face cache after a download of `someone/a-model`."""
    repo = tmp_path / "models--someone--a-model"
    commit = "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        source = toy_folder / name
        digest = find.file_sha256(source)
        shutil.copy(source, repo / "blobs" / digest)
        (snapshot / name).symlink_to(repo / "blobs" / digest)
    return tmp_path


def test_a_cached_repository_loads_without_network(cache):
    model = Talk2DINO.from_pretrained(REPO, device="cpu", cache_dir=cache)
    assert model.loaded.origin == REPO


FETCH = {
    "revision": "v1",
    "token": "secret",
    "cache_dir": "/somewhere",
    "local_files_only": True,
    "force_download": True,
}


def test_every_option_reaches_the_download(toy_folder, monkeypatch):
    asked = []

    def fetch_folder(repo, advice, **options):
        asked.append((repo, options))
        return toy_folder

    monkeypatch.setattr(find, "fetch_folder", fetch_folder)
    Talk2DINO.from_pretrained(REPO, device="cpu", **FETCH)
    find_model("vitb", **FETCH)
    assert asked == [(REPO, FETCH), (PUBLISHED["vitb"].repo, FETCH)]


def test_a_damaged_file_of_the_cache_is_named(cache):
    blob = next((cache / "models--someone--a-model" / "snapshots").rglob("*.safetensors")).resolve()
    with blob.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\1\2\3\4")
    with pytest.raises(ValueError, match="damaged: its SHA-256 is .* Delete it and load again"):
        Talk2DINO.from_pretrained(REPO, device="cpu", cache_dir=cache)


def test_a_repository_known_to_have_no_weights_says_so_offline(tmp_path):
    known = tmp_path / "models--someone--a-model"
    (known / "refs").mkdir(parents=True)
    (known / "refs" / "main").write_text("c0ffee")
    (known / ".no_exist" / "c0ffee").mkdir(parents=True)
    (known / ".no_exist" / "c0ffee" / "model.safetensors").touch()
    with pytest.raises(ValueError, match="holds no model.safetensors"):
        find.fetch_folder(REPO, cache_dir=tmp_path, local_files_only=True)


def test_without_network_it_says_what_to_download_and_where_to_put_it(tmp_path):
    with pytest.raises(RuntimeError) as error:
        Talk2DINO.from_pretrained("dinov3_vitl", device="cpu", cache_dir=tmp_path)
    for part in (
        "https://huggingface.co/lorebianchi98/Talk2DINOv3-ViTL/tree/main",
        "model.safetensors and config.json",
        "weights/dinov3_vitl/",
        "dinov3_vitl_mlp_infonce.pth",
    ):
        assert part in str(error.value)
    with pytest.raises(RuntimeError, match="weights/vitb/"):
        Talk2DINO.from_pretrained("lorebianchi98/Talk2DINO-ViTB", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("./nowhere", "no file or folder ./nowhere"), ("a/b/c", "a/b/c"), ("weights/x.pth", "x.pth")],
)
def test_a_path_that_is_not_there_is_named(name, message):
    with pytest.raises(FileNotFoundError, match=message):
        load_model(name)


def test_a_folder_without_weights_says_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no model.safetensors, but nothing"):
        load_model(str(tmp_path))
    for name in ("model.safetensors.incomplete", "model.safetensors.index.json"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(FileNotFoundError, match=f"but .*{name}.*completely; .*several files"):
            load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(name):
    with pytest.raises(ValueError, match="the model's name is empty.*one of toy, vitb"):
        Talk2DINO.from_pretrained(name, device="cpu")


def test_a_half_downloaded_file_is_recognised(tmp_path, toy_folder):
    whole = (toy_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged, cut short"):
        load_model(str(tmp_path))


def test_a_pickle_is_refused_unless_it_holds_tensors_only(tmp_path, toy_state, toy):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"model.x": print}, path)
    with pytest.raises(ValueError, match="pickled code"):
        load_model(str(tmp_path))
    torch.save(toy_state, path)
    assert load_model(str(tmp_path)).segmenter.config.text_model == "toy"


@pytest.mark.parametrize("part", ["model.", "clip_model.", "proj."])
def test_a_quantised_part_is_refused(part, tmp_path, toy_state):
    whole = {
        name: value.to(torch.int8) for name, value in toy_state.items() if name.startswith(part)
    }
    save(toy_state | whole, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors looks quantised: int8 .*float32"):
        load_model(str(tmp_path))


def test_a_damaged_configuration_is_named(tmp_path, toy_folder):
    shutil.copytree(toy_folder, tmp_path, dirs_exist_ok=True)
    for text, message in (("{", "is not JSON"), ("[]", "but a list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmenter": 5}, "config: expected 'key: value' lines, found 5"),
        ({"segmenter": {"colour": 1}}, "unknown key 'colour'"),
        ({"segmenter": {}}, "'projection_weights:' is missing"),
        ({"segmenter": {"projection": [1]}}, r"found \[1\]"),
        ({"segmenter": {"projection_weights": 5}}, "projection_weights must be str, got 5"),
        ({"segmenter": {"input_size": "448"}}, "input_size must be int, got '448'"),
        ({"background_threshold": None}, "background_threshold must be float, got None"),
        ({"background_threshold": 7}, "background_threshold must lie in .*, got 7"),
        ({"training": [1]}, r"training must be dict.*, got \[1\]"),
    ],
)
def test_a_changed_configuration_is_refused_with_what_was_found(changes, message, tmp_path):
    content = {"segmenter": {"projection_weights": "seeded:0"}, "background_threshold": 0.5}
    (tmp_path / "config.json").write_text(json.dumps({**content, **changes}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=f"config.json.*{message}"):
        find_model(str(tmp_path))


def test_a_projection_alone_needs_our_configuration(tmp_path):
    state = {f"proj.{name}": value for name, value in projection_state(192).items()}
    save(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"safetensors is a projection into 192 dim.*pass config="):
        load_model(str(tmp_path))


ANSWER = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co/a/b"))


def unreached(status):
    error = LocalEntryNotFoundError("x")
    error.__cause__ = HfHubHTTPError(
        f"{status} no", response=httpx.Response(status, request=ANSWER.request)
    )
    return error


@pytest.fixture
def hub(monkeypatch):
    """What a download gives, by the name of the file: an error, or a path; and what was asked."""
    answers, asked = {}, []

    def download(repo, name, **settings):
        asked.append((repo, name, settings))
        if isinstance(answers[name], Exception):
            raise answers[name]
        return str(answers[name])

    monkeypatch.setattr(find, "hf_hub_download", download)
    return answers, asked


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (GatedRepoError("x", response=ANSWER), ValueError, "it is gated: accept its conditions"),
        (RepositoryNotFoundError("x", response=ANSWER), ValueError, "no model 'a/b' on the Hub"),
        (RevisionNotFoundError("x", response=ANSWER), ValueError, "no revision 'v7'"),
        (RemoteEntryNotFoundError("x", response=ANSWER), ValueError, "holds no model.safetensors"),
        (LocalEntryNotFoundError("not here"), RuntimeError, r"\(not here\).*into one folder"),
        (httpx.ConnectError("no route\nmore"), RuntimeError, r"\(no route\).*download"),
        (unreached(503), RuntimeError, r"\(503 no\).*Advice"),
    ],
)
def test_every_answer_is_explained(hub, error, kind, message):
    hub[0]["model.safetensors"] = error
    with pytest.raises(kind, match=message):
        fetch_folder("a/b", "Advice.", revision="v7")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_download_that_was_cut_short_is_no_model_without_that_file(cache, name):
    next(cache.rglob(f"snapshots/*/{name}")).unlink()
    with pytest.raises(RuntimeError, match="could not download someone/a-model"):
        fetch_folder(REPO, cache_dir=cache)


def test_a_file_that_was_cut_short_is_downloaded_where_the_hub_has_it(cache, hub):
    path = next(cache.rglob("snapshots/*/config.json"))
    path.unlink()
    hub[0].update({path.name: path, "model.safetensors": path.with_name("model.safetensors")})
    assert fetch_folder(REPO, cache_dir=cache, token="t") == path.parent
    settings = {"cache_dir": cache, "token": "t", "revision": path.parent.name}
    assert hub[1][1] == (REPO, "config.json", settings)


def test_only_two_files_are_fetched_and_the_options_reach_the_hub(hub, toy_folder):
    options = {"revision": "v1", "token": "t", "cache_dir": "/c", "force_download": True}
    hub[0]["model.safetensors"] = toy_folder / "model.safetensors"
    hub[0]["config.json"] = RemoteEntryNotFoundError("x", response=ANSWER)
    assert fetch_folder("a/b", **options) == toy_folder
    of_the_commit = {**options, "revision": toy_folder.name}
    files = [("a/b", "model.safetensors", options), ("a/b", "config.json", of_the_commit)]
    assert hub[1] == files


def test_a_cached_repository_without_configuration_loads_without_network(cache):
    path = next(cache.rglob("snapshots/*/config.json"))
    path.unlink()
    known = path.parents[2] / ".no_exist" / path.parent.name / path.name  # as the Hub has said
    known.parent.mkdir(parents=True)
    known.touch()
    assert not (fetch_folder(REPO, cache_dir=cache) / "config.json").exists()


def test_addresses_follow_the_endpoint(hub, monkeypatch):
    monkeypatch.setattr(find, "ENDPOINT", "https://hub.example")
    hub[0]["model.safetensors"] = GatedRepoError("x", response=ANSWER)
    with pytest.raises(ValueError, match="conditions at https://hub.example/a/b and"):
        fetch_folder("a/b")
