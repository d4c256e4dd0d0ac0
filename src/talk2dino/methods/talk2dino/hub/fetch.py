"""Get a model's files from the Hugging Face Hub, or say what to download and where to put it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from talk2dino.config import reason
from talk2dino.files import file_sha256
from talk2dino.methods.talk2dino.hub.published import CONFIG, WEIGHTS

logger = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch_folder(repo: str, advice: str = "", **settings: Any) -> Path:
    """The local folder with a repository's weights and configuration, downloaded if need be.

    Both are of one commit. Nothing else of the repository is fetched, and none of its code runs.

    Args:
        repo: `owner/name`.
        advice: appended to errors: another way to get the same model.
        settings: of `huggingface_hub.hf_hub_download`: revision, token, cache_dir,
            local_files_only, force_download.

    Raises:
        ValueError: no such repository or revision, one without weights, a damaged download, or
            files of two commits.
        RuntimeError: no network; says which files to put where.
    """
    place, revision = settings.get("cache_dir"), settings.get("revision")
    cached = try_to_load_from_cache(repo, WEIGHTS, place, revision)
    if not settings.get("local_files_only") and not isinstance(cached, str):
        logger.warning("asking the Hub for %s; a whole model has about a gigabyte", repo)
    config, missing = Path(), None  # the first error says why the Hub was not reached
    try:
        try:
            config = Path(hf_hub_download(repo, CONFIG, **settings))
        except EntryNotFoundError as error:  # the weights tell what is needed
            missing = error
            settings["local_files_only"] = isinstance(error, LocalEntryNotFoundError)
        path = Path(hf_hub_download(repo, WEIGHTS, **settings))
        if missing:  # in this commit, or only here?
            if try_to_load_from_cache(repo, CONFIG, place, path.parent.name) is None:
                raise missing
            config = path
    except Exception as error:  # the network libraries raise what they raise
        why = missing if missing and isinstance(error, LocalEntryNotFoundError) else error
        raise _explained(why, repo, revision, advice) from error
    if config.parent != path.parent:
        raise ValueError(f"{repo} got another commit while it was downloaded. Load it again.")
    check_blob(path)
    return path.parent


def _explained(error: Exception, repo: str, revision: str | None, advice: str) -> Exception:
    """What to tell a user of an error of the Hub's client."""
    known: dict[type[Exception], str] = {
        HFValidationError: f"{repo!r} is no name of a Hub repository (owner/name).",
        GatedRepoError: f"{repo} is gated: accept its conditions at {hub_address(repo)} and pass a "
        "token (or run: hf auth login).",
        RepositoryNotFoundError: f"there is no model {repo!r} on the Hub, or it is private (then "
        f"pass token=). {advice}",
        RevisionNotFoundError: f"{repo} has no revision {revision!r}.",
    }
    if not isinstance(error, LocalEntryNotFoundError):
        known[EntryNotFoundError] = f"{repo} holds no {WEIGHTS}: it is no Talk2DINO model."
    for kind, text in known.items():
        if isinstance(error, kind):
            return ValueError(text)
    why = reason(error)
    if isinstance(error, LocalEntryNotFoundError):
        cause = error.__cause__
        why = f"{reason(cause) if cause else 'no network, or offline mode'}; not in the cache"
    return RuntimeError(
        f"could not download {repo} ({why}). Where there is a network, download {WEIGHTS} and "
        f"{CONFIG} from {hub_address(repo)}/tree/main into one folder, and give that folder's "
        f"path. {advice}".rstrip()
    )


def check_blob(path: Path) -> None:
    """Compare a file of the Hugging Face cache with the checksum it is kept under.

    Raises:
        ValueError: its content is not what was published.
    """
    blob = path.resolve()
    if not _SHA256.fullmatch(blob.name):
        return  # not in the cache's layout, or a small file
    found = file_sha256(blob)
    if found != blob.name:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {found[:12]}..., published is {blob.name[:12]}.... "
            f"Delete {blob} and load again."
        )


def hub_address(repo: str, endpoint: str = ENDPOINT) -> str:
    """Where a browser finds a repository; HF_ENDPOINT names another Hub."""
    return f"{endpoint}/{repo}"
