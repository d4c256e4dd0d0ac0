"""What the Hub answers, and what a user is told."""

import os
import subprocess
import sys

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

from talk2dino.methods.talk2dino.hub.fetch import FetchOptions, fetch_folder, hub_address

ANSWER = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co/a/b"))


def failing(error, only=None):
    """A download that fails, for one file or for all."""

    def download(repo, name, **settings):
        if only in (None, name):
            raise error
        return f"/cache/{name}"

    return download


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (GatedRepoError("x", response=ANSWER), ValueError, "a/b is gated: accept its conditions"),
        (RepositoryNotFoundError("x", response=ANSWER), ValueError, "no model 'a/b' on the Hub"),
        (RevisionNotFoundError("x", response=ANSWER), ValueError, "no revision 'v7'"),
        (HFValidationError("x"), ValueError, "no name of a Hub repository"),
        (LocalEntryNotFoundError("x"), RuntimeError, "not in the cache.*into one folder"),
        (httpx.ConnectError("no route\nmore"), RuntimeError, r"ConnectError: no route\).*download"),
    ],
)
def test_every_answer_is_explained(error, kind, message):
    with pytest.raises(kind, match=message):
        fetch_folder("a/b", FetchOptions(revision="v7"), "Advice.", failing(error))


def test_a_repository_without_weights_is_no_model():
    missing = RemoteEntryNotFoundError("x", response=ANSWER)
    with pytest.raises(ValueError, match="a/b holds no model.safetensors"):
        fetch_folder("a/b", FetchOptions(), "", failing(missing, "model.safetensors"))


def test_a_repository_without_a_configuration_is_left_to_its_weights():
    missing = RemoteEntryNotFoundError("x", response=ANSWER)
    folder = fetch_folder("a/b", FetchOptions(), "", failing(missing, "config.json"))
    assert str(folder) == "/cache"


def test_only_two_files_are_fetched_and_the_options_reach_the_hub():
    asked = []
    options = FetchOptions(
        revision="v1", token="t", cache_dir="/c", local_files_only=True, force_download=True
    )

    def download(repo, name, **settings):
        asked.append((repo, name, FetchOptions(**settings)))
        return f"/cache/{name}"

    fetch_folder("a/b", options, "", download)
    assert asked == [("a/b", "config.json", options), ("a/b", "model.safetensors", options)]


FIRST, SECOND = "a" * 40, "b" * 40
MISSING = RemoteEntryNotFoundError("x", response=ANSWER)


def cached(commits, missing=()):
    """A download that finds each file in the next of `commits`, and keeps what was asked."""
    asked = []

    def download(repo, name, **settings):
        asked.append((name, settings["revision"]))
        if (name, settings["revision"]) in missing:
            raise MISSING
        return f"/cache/{commits[len(asked) - 1]}/{name}"

    return download, asked


def test_both_files_are_of_one_commit():
    download, asked = cached([FIRST, FIRST])
    fetch_folder("a/b", FetchOptions(), "", download)
    assert asked == [("config.json", None), ("model.safetensors", FIRST)]


def test_a_configuration_that_came_with_the_weights_commit_is_fetched_too(tmp_path):
    download, asked = cached([None, SECOND, SECOND], missing=[("config.json", None)])
    fetch_folder("a/b", FetchOptions(cache_dir=tmp_path), "", download)
    assert asked[1:] == [("model.safetensors", None), ("config.json", SECOND)]


@pytest.mark.parametrize("known", [True, False])
def test_offline_weights_alone_load_only_if_the_hub_had_no_configuration(tmp_path, known):
    if known:  # what the client keeps when a file does not exist
        (tmp_path / "models--a--b" / ".no_exist" / FIRST).mkdir(parents=True)
        (tmp_path / "models--a--b" / ".no_exist" / FIRST / "config.json").touch()
        (tmp_path / "models--a--b" / "snapshots" / FIRST).mkdir(parents=True)

    def download(repo, name, **settings):
        if name == "config.json":
            raise LocalEntryNotFoundError("x")
        return str(tmp_path / "models--a--b" / "snapshots" / FIRST / name)

    options = FetchOptions(cache_dir=tmp_path, local_files_only=True)
    if known:
        assert fetch_folder("a/b", options, "", download).name == FIRST
    else:
        with pytest.raises(RuntimeError, match="offline mode, and not in the cache"):
            fetch_folder("a/b", options, "", download)


@pytest.mark.parametrize("status", [403, 429, 503])
def test_the_reason_of_the_server_is_said(status):
    error = LocalEntryNotFoundError("x")
    error.__cause__ = HfHubHTTPError(
        f"{status} no", response=httpx.Response(status, request=ANSWER.request)
    )
    with pytest.raises(RuntimeError, match=f"HfHubHTTPError: {status} no; not in the cache"):
        fetch_folder("a/b", FetchOptions(), "", failing(error))


def test_addresses_follow_the_endpoint(monkeypatch):
    assert hub_address("a/b", "https://hub.example") == "https://hub.example/a/b"
    code = (
        "from talk2dino.methods.talk2dino.hub import fetch, load; "
        "from talk2dino.methods.talk2dino.hub.published import PUBLISHED; "
        "print(fetch._by_hand('a/b', 'x', ''), load._source(PUBLISHED['vitb']), "
        "bool(load._ADDRESS.match('https://hub.example/a/b')))"
    )
    environment = os.environ | {"HF_ENDPOINT": "https://hub.example"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    text = said.stdout.decode()
    assert text.count("https://hub.example/") == 2 and text.endswith("True\n"), said.stderr
    assert "huggingface.co" not in text
