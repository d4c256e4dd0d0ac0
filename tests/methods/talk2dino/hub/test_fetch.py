"""What the Hub answers, and what a user is told."""

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from talk2dino.methods.talk2dino.hub import find as fetch
from talk2dino.methods.talk2dino.hub.find import fetch_folder, hub_address

ANSWER = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co/a/b"))
MISSING = RemoteEntryNotFoundError("x", response=ANSWER)
FIRST, SECOND = "a" * 40, "b" * 40


def unreached(status):
    error = LocalEntryNotFoundError("x")
    error.__cause__ = HfHubHTTPError(
        f"{status} no", response=httpx.Response(status, request=ANSWER.request)
    )
    return error


@pytest.fixture
def answers(monkeypatch):
    """What the download of each file gives: an error, or the commit that it is of."""
    found, asked = {"config.json": FIRST, "model.safetensors": FIRST}, []

    def download(repo, name, **settings):
        asked.append((repo, name, settings))
        if isinstance(found[name], Exception):
            raise found[name]
        return f"/cache/models--a--b/snapshots/{found[name]}/{name}"

    monkeypatch.setattr(fetch, "hf_hub_download", download)
    return found, asked


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (GatedRepoError("x", response=ANSWER), ValueError, "a/b is gated: accept its conditions"),
        (RepositoryNotFoundError("x", response=ANSWER), ValueError, "no model 'a/b' on the Hub"),
        (RevisionNotFoundError("x", response=ANSWER), ValueError, "no revision 'v7'"),
        (HFValidationError("x"), ValueError, "no name of a Hub repository"),
        (LocalEntryNotFoundError("x"), RuntimeError, "not in the cache.*into one folder"),
        (httpx.ConnectError("no route\nmore"), RuntimeError, r"\(no route\).*download"),
        (unreached(403), RuntimeError, "403 no; not in the cache"),
        (unreached(503), RuntimeError, "503 no; not in the cache"),
    ],
)
def test_every_answer_is_explained(answers, error, kind, message):
    offline = LocalEntryNotFoundError("then only the cache is asked")
    local = isinstance(error, LocalEntryNotFoundError)
    answers[0].update({"config.json": error, "model.safetensors": offline if local else error})
    with pytest.raises(kind, match=message):
        fetch_folder("a/b", "Advice.", revision="v7")


def test_a_repository_without_weights_is_no_model(answers):
    answers[0]["model.safetensors"] = MISSING
    with pytest.raises(ValueError, match="a/b holds no model.safetensors"):
        fetch_folder("a/b")


def test_only_two_files_are_fetched_and_the_options_reach_the_hub(answers):
    options = {"revision": "v1", "token": "t", "cache_dir": "/c", "force_download": True}
    assert fetch_folder("a/b", **options).name == FIRST
    assert answers[1] == [("a/b", "config.json", options), ("a/b", "model.safetensors", options)]


def test_files_of_two_commits_are_refused(answers):
    answers[0]["model.safetensors"] = SECOND
    with pytest.raises(ValueError, match="a/b got another commit while it was downloaded"):
        fetch_folder("a/b")


@pytest.mark.parametrize("error", [MISSING, LocalEntryNotFoundError("x")])
@pytest.mark.parametrize("known", [True, False])
def test_weights_alone_load_only_if_the_hub_had_no_configuration(answers, tmp_path, error, known):
    answers[0]["config.json"] = error
    if known:  # what the client keeps when a file does not exist
        (tmp_path / "models--a--b" / ".no_exist" / FIRST).mkdir(parents=True)
        (tmp_path / "models--a--b" / ".no_exist" / FIRST / "config.json").touch()
        (tmp_path / "models--a--b" / "snapshots" / FIRST).mkdir(parents=True)
        assert fetch_folder("a/b", cache_dir=tmp_path).name == FIRST
    else:
        with pytest.raises((RuntimeError, ValueError)):
            fetch_folder("a/b", cache_dir=tmp_path)


def test_addresses_follow_the_endpoint():
    assert hub_address("a/b", "https://hub.example") == "https://hub.example/a/b"
