"""Files that are either complete or absent: written beside their final name, then renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import pickle
import re
import secrets
import shutil
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_LEFTOVER = re.compile(r"\.[^/]{1,40}\.tmp-[0-9a-f]{16}/?")
_MARK = "talk2dino_unfinished"
_FAILED = "could not write the file"
_LARGE = 1 << 26  # bytes of a file whose digest is kept: a tenth of a second to compute


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path for a file or a folder; renamed to `path` on success, else removed.

    Processes and threads that write the same file do not disturb each other; the last one wins.

    Raises:
        OSError: nothing could be written; the message names `path`, which is left as it was.
    """
    path = Path(path)
    with _unfinished(path) as folder:
        temporary = folder / path.name
        yield temporary
        if path.is_dir() and temporary.is_dir():
            os.replace(path, folder / "replaced folder")
        os.replace(temporary, path)


def write_text(path: str | Path, text: str, errors: str = "strict") -> None:
    """Write a text file in UTF-8 as `atomic_path` does; `errors` as of `str.encode`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


@contextmanager
def atomic_files(folder: str | Path, *names: str) -> Iterator[Path]:
    """A temporary folder for files that are valid together; they move to `folder` on success.

    While they move, the last one says that they are unfinished if it is a JSON file, and is absent
    if it is not. Of the `names` that are not written, older ones are removed.

    Raises:
        OSError: nothing could be written; the message names the file.
    """
    folder = Path(folder)
    with _unfinished(folder / names[-1]) as written:
        yield written
        last = folder / names[-1]
        if last.suffix == ".json":
            (written / "unfinished").write_text(json.dumps({_MARK: "run the same command again"}))
            os.replace(written / "unfinished", last)
        else:
            last.unlink(missing_ok=True)
        for name in names:
            if name != names[-1] and (folder / name).exists():
                (written / "replaced" / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder / name, written / "replaced" / name)
            if (written / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(written / name, folder / name)


def is_unfinished(last: str | Path) -> bool:
    """Whether `atomic_files` was killed while it moved the files that `last` makes valid."""
    if not Path(last).is_file():  # nothing, or a named pipe
        return False
    try:
        content = json.loads(Path(last).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and _MARK in content


def check_finished(last: str | Path) -> None:
    """Raise ValueError if the files that `last` belongs to are a mixture of old and new ones."""
    if is_unfinished(last):
        raise ValueError(f"{last}: writing was interrupted. Run the command that wrote it again.")


def remove_folder(folder: Path) -> None:
    """Remove a folder with everything in it; a kill leaves all of it, or none."""
    with _unfinished(folder) as removed:
        os.replace(folder, removed / folder.name)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, for what is not complete; its lock says that it is in use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    # 40 characters: a name of 255 bytes could not be made longer.
    folder = path.with_name(f".{path.name[:40]}.tmp-{secrets.token_hex(8)}")
    lock = None
    try:
        while not folder.exists():  # again if another process has just taken it for a leftover
            folder.mkdir()
            lock = _lock_folder(folder, wait=True)
        yield folder
    except OSError as error:
        found = str(error.filename or path)
        if error.filename and Path(found) != path and f".tmp-{folder.name[-16:]}" not in found:
            raise
        found = str(path) if Path(found) == folder else _LEFTOVER.sub("", found)
        reason = error.strerror or str(error)
        if reason.startswith(_FAILED):
            raise type(error)(error.errno, reason, found) from error
        if error.errno is None:  # Pillow's
            raise OSError(f"{path}: {_FAILED} ({reason})") from error
        raise type(error)(error.errno, f"{_FAILED} ({reason})", found) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_leftovers(folder: str | Path) -> None:
    """Remove what killed processes left unfinished in a folder, which is looked at once."""
    _remove_leftovers(os.path.abspath(folder))


@cache
def _remove_leftovers(folder: str) -> None:
    with suppress(OSError):  # nothing there, or nothing that may be seen
        for name in filter(_LEFTOVER.fullmatch, os.listdir(folder)):
            path = os.path.join(folder, name)
            if (lock := _lock_folder(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock_folder(folder: str | Path, wait: bool = False) -> int | None:
    """Hold a folder until the number is closed; None: it is gone, or another process holds it."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return number
        except OSError:
            os.close(number)
    return None


def check_writable(path: str | Path, overwrite: bool = False) -> None:
    """Raise unless a file can be written at `path`.

    Raises:
        FileExistsError: it is there already and `overwrite` is false.
        IsADirectoryError, PermissionError, NotADirectoryError: it can never be written.
    """
    path = Path(path)
    remove_leftovers(path.parent)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a file name is needed")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already. Choose another name or pass --overwrite (overwrite=True)."
        )
    check_folder_writable(path.parent)


def check_replaceable(folder: str | Path, names: Sequence[str], overwrite: bool = False) -> None:
    """`check_writable` for files of `atomic_files`; unfinished ones can always be replaced."""
    overwrite = overwrite or is_unfinished(Path(folder) / names[-1])
    for name in names:
        check_writable(Path(folder) / name, overwrite)


def check_not_inputs(outputs: Iterable[Path], inputs: Iterable[str | Path | None]) -> None:
    """Raise ValueError if a file or folder is to be written that is read, too."""
    read = {Path(path).resolve() for path in inputs if path}
    for path in outputs:
        if path.resolve() in read:
            raise ValueError(f"{path} is an input. Choose another place for the output.")


def check_folder_writable(folder: str | Path) -> None:
    """Raise unless files can be made in `folder`, which need not exist yet."""
    folder = Path(folder)
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is a file, so the folder {folder} cannot be made")
    remove_leftovers(nearest)
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise PermissionError(f"cannot write in the folder {nearest} ({reason})") from error


def check_file(path: str | Path, what: str = "file") -> None:
    """Raise unless `path` is a file: reading from a named pipe or a device may never end.

    Raises:
        FileNotFoundError: there is nothing; `what` says what was looked for.
        ValueError: it is something else.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such {what}")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a named pipe or a device"
        raise ValueError(f"{path} is {kind}, not a file")


def listed(folder: str | Path, pattern: str) -> list[Path]:
    """What matches in `folder`, in the order of the names, without hidden files.

    Where a disk is used with macOS, a hidden `._<name>` of metadata lies beside every file.
    """
    return sorted(path for path in Path(folder).glob(pattern) if not path.name.startswith("."))


def content_digest(path: str | Path | None) -> str:
    """An input by its content; what is no path (None, `pretrained`, `seeded:<n>`) stays."""
    if not os.path.exists(str(path)):
        return str(path)
    path = Path(str(path))
    if path.is_file():
        return f"sha256:{file_sha256(path)}"
    files = sorted(p for p in path.rglob("*") if p.is_file())
    listing = "".join(f"{p.relative_to(path).as_posix()} {file_sha256(p)}\n" for p in files)
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a whole file, in hexadecimal.

    Of a large file it is computed once, and kept beside its size and times in the user's cache.
    """
    path = Path(path).resolve()
    state = path.stat()
    return _sha256(str(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def user_cache() -> Path:
    """The folder for what takes long to find out again; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "talk2dino"


@lru_cache(maxsize=1 << 16)  # more than the images of a benchmark
def _sha256(*file: str | int) -> str:
    path, size = Path(str(file[0])), int(file[1])
    kept = user_cache() / "digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError):
        *same, digest = json.loads(kept.read_text())
        if same == list(file):
            return str(digest)
    computed = hashlib.sha256()
    with open(path, "rb") as opened:
        while block := opened.read(1 << 20):
            computed.update(block)
    if size >= _LARGE:
        with suppress(OSError), atomic_path(kept) as temporary:
            temporary.write_text(json.dumps([*file, computed.hexdigest()]))
    return computed.hexdigest()


def hold_lock(path: str | Path) -> TextIO:
    """Hold the lock file `path` until it is closed or this process ends.

    Worker processes do not inherit this kind of lock. Where a file system has none, nothing is
    held.

    Raises:
        RuntimeError: another process holds it.
    """
    path = Path(path)
    file = path.open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise RuntimeError(
                f"another process is at work on {path}. Wait for it or stop it first."
            ) from error
    return file


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """`hold_lock` without a file: a kill leaves nothing in the folder, which is made.

    Raises:
        RuntimeError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"another process is at work in {folder}. Wait for it or stop it first."
            ) from error
        except OSError:  # of a network's disk, which has no such lock
            pass
        yield
    finally:
        os.close(number)


def save_torch(value: Any, path: str | Path) -> None:
    """`torch.save`, atomically; equal values give equal bytes under any file name."""
    import torch

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(value, file)  # an open file: a path's name would become part of the bytes
        except RuntimeError as error:  # a full disk, behind an error of torch's zip writer
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


def save_safetensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file of PyTorch tensors, for `atomic_files`.

    Written here: the library's own writer has other errors, and lets only the owner read the file.
    """
    from safetensors.torch import save

    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    path.write_bytes(save(contiguous, metadata={"format": "pt", **(metadata or {})}))


def load_torch(path: str | Path, mmap: bool = False) -> Any:
    """`torch.load` of tensors and plain containers only, to the CPU.

    Args:
        path: a file written by `torch.save`.
        mmap: leave the tensors on disk until they are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, cut short, not a torch file, or holds code (never run here).
    """
    import torch

    path = Path(path)
    check_file(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    if is_torchscript(path):
        raise ValueError(f"{path} is a TorchScript program, not only tensors, and is not loaded.")
    try:
        mmap = mmap and zipfile.is_zipfile(path)  # torch's format before 1.6 cannot be mapped
        check_archive(path)
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # the loader raises a dozen kinds on rubbish
        code = isinstance(error, pickle.UnpicklingError) and "Unsupported operand" not in str(error)
        if not code:
            raise ValueError(f"{path} is damaged, cut short, or is not a torch file") from error
        raise ValueError(
            f"{path} holds pickled code, not only tensors, and is not loaded: "
            "running code from a file is unsafe. Save it again as a plain dict of tensors."
        ) from error


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a program as well, which `torch.load` has run before version 2.6."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # a damaged list of parts raises a dozen kinds, and `load_torch` says it
        return False


def check_archive(file: str | Path | BinaryIO) -> None:
    """Raise ValueError for a zip archive whose parts say to be larger than itself.

    `torch.save` compresses nothing, and reading takes the memory that the parts claim.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        assert archive.fp is not None
        size, claimed = archive.fp.seek(0, os.SEEK_END), sum(p.file_size for p in archive.filelist)
    if claimed > size:
        raise ValueError(f"the parts of an archive of {size} bytes claim {claimed} bytes")


def find_in_checkout(relative: str | Path) -> Path:
    """A file of the project: below the current folder, or else one that is `shipped`.

    Returns `relative` itself if it is in neither.
    """
    relative, found = Path(relative), shipped(relative)
    return found if not relative.exists() and found.exists() else relative


def shipped(relative: str | Path) -> Path:
    """A file or folder that comes with the project: of the installed package, or its checkout."""
    package = Path(__file__).resolve().parent
    inside = (package / relative).resolve()  # configs/ and assets/ are links in a checkout
    return inside if inside.exists() else package.parents[1] / relative


def read_ahead(reads: Iterable[Callable[[], T]], threads: int, ahead: int = 0) -> Iterator[T]:
    """The results of `reads` in order, read in threads.

    Args:
        reads: each reads one thing.
        threads: how many read at once.
        ahead: how many things may wait, at least one for every thread.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for read in reads:
                waiting.append(pool.submit(read))
                if len(waiting) > max(ahead, threads):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
