"""What the Hub answers, and what a user is told."""

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from talk2dino.methods.talk2dino.hub.fetch import FetchOptions, fetch_folder

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
