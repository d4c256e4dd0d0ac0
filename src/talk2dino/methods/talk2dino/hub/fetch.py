"""Get a model's files from the Hugging Face Hub, or say what to download and where to put it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from talk2dino.files import file_sha256
from talk2dino.methods.talk2dino.hub.published import HUB_FILES

logger = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class FetchOptions:
    """How to reach the Hub; the defaults are those of huggingface_hub."""

    revision: str | None = None
    """Branch, tag or commit."""
    token: str | bool | None = None
    """For private repositories."""
    cache_dir: str | Path | None = None
    """Where downloads are kept; None means the Hugging Face cache."""
    local_files_only: bool = False
    """Use what is in the cache and nothing else."""
    force_download: bool = False
    """Download again what is in the cache."""


def fetch_folder(
    repo: str,
    options: FetchOptions,
    advice: str = "",
    download: Callable[..., str] = huggingface_hub.hf_hub_download,
) -> Path:
    """The local folder with a repository's weights and configuration, downloaded if need be.

    Nothing else of the repository is fetched, and none of its code ever runs.

    Args:
        repo: `owner/name`.
        options: how to reach the Hub.
        advice: appended to errors: another way to get the same model.
        download: what fetches one file, as `huggingface_hub.hf_hub_download`.

    Raises:
        ValueError: no such repository or revision, one without weights, a damaged download.
        RuntimeError: no network; says which files to put where.
    """
    weights, config = HUB_FILES
    settings = {
        "revision": options.revision,
        "token": options.token,
        "cache_dir": options.cache_dir,
        "local_files_only": options.local_files_only,
        "force_download": options.force_download,
    }
    cached = huggingface_hub.try_to_load_from_cache(repo, weights, options.cache_dir)
    if not options.local_files_only and not isinstance(cached, str):
        logger.warning("asking the Hub for %s; a whole model has about a gigabyte", repo)
    unreached: LocalEntryNotFoundError | None = None
    try:
        known: object = None
        try:
            known = download(repo, config, **settings)
            settings["revision"] = _commit(str(known)) or options.revision  # of both files
        except LocalEntryNotFoundError as error:
            unreached, settings["local_files_only"] = error, True
        except EntryNotFoundError:
            pass  # the weights tell what is needed
        path = Path(download(repo, weights, **settings))
        if known is None and (commit := _commit(str(path))):  # was it missing in this commit, too?
            settings["revision"], cache = commit, options.cache_dir
            known = huggingface_hub.try_to_load_from_cache(repo, config, cache, commit)
            if known is None and unreached is not None:
                raise unreached
            if known is None:
                with suppress(EntryNotFoundError):
                    download(repo, config, **settings)
    except LocalEntryNotFoundError as error:
        why, cause = "not in the cache", (unreached or error).__cause__
        unasked = cause is None or isinstance(cause, OfflineModeIsEnabled)
        why = f"no network, or offline mode, and {why}" if unasked else f"{reason(cause)}; {why}"
        raise RuntimeError(_by_hand(repo, why, advice)) from error
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no name of a Hub repository (owner/name).") from error
    except GatedRepoError as error:
        raise ValueError(
            f"{repo} is gated: accept its conditions at {hub_address(repo)} and pass a "
            "token (or run: hf auth login)."
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"there is no model {repo!r} on the Hub, or it is private (then pass token=). {advice}"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{repo} has no revision {options.revision!r}.") from error
    except EntryNotFoundError as error:
        raise ValueError(f"{repo} holds no {weights}: it is no Talk2DINO model.") from error
    except Exception as error:  # the network libraries raise what they raise
        raise RuntimeError(_by_hand(repo, reason(error), advice)) from error
    check_blob(path)
    return path.parent


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


def _commit(path: str) -> str | None:
    """The commit that a file in the Hugging Face cache is of: its folder is named after it."""
    folder = Path(path).parent.name
    return folder if _COMMIT.fullmatch(folder) else None


def reason(error: BaseException | None) -> str:
    """The kind of an error and the first line of what it says, in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _by_hand(repo: str, why: str, advice: str) -> str:
    files = " and ".join(HUB_FILES)
    return (
        f"could not download {repo} ({why}). Where there is a network, download {files} from "
        f"{hub_address(repo)}/tree/main into one folder, and give that folder's path. "
        f"{advice}"
    ).rstrip()
