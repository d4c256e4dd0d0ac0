"""Files that are either complete or absent: written beside their final name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import stat
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

if TYPE_CHECKING:
    from torch import Tensor

_SAMPLE = 2**20


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed on success, removed on any error.

    Processes and threads that write the same file do not disturb each other; the last one wins.

    Raises:
        OSError: nothing could be written; the message names `path`, which is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{threading.get_ident()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename and Path(error.filename) not in (temporary, path):
            raise
        reason = error.strerror or error
        if error.errno is None:  # Pillow's
            raise OSError(f"{path}: could not write the file ({reason})") from error
        raise type(error)(error.errno, f"could not write the file ({reason})", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path, overwrite: bool = False) -> None:
    """Raise unless a file can be written at `path`.

    Raises:
        FileExistsError: it is there already and `overwrite` is false.
        IsADirectoryError, PermissionError, NotADirectoryError: it can never be written.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a file name is needed")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already. Choose another name or pass --overwrite (overwrite=True)."
        )
    check_folder_writable(path.parent)


def check_folder_writable(folder: str | Path) -> None:
    """Raise unless files can be made in `folder`, which need not exist yet."""
    folder = Path(folder)
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is a file, so the folder {folder} cannot be made")
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


def weights_identity(weights: str | Path) -> str:
    """Weights as results name them: `pretrained` and `seeded:<n>` stay, files by their content."""
    path = Path(weights)
    if not path.exists():
        return str(weights)
    if path.is_file():
        return f"sha256:{file_sha256(path)}"
    files = sorted(p for p in path.rglob("*") if p.is_file())
    listing = "".join(f"{p.relative_to(path).as_posix()} {file_sha256(p)}\n" for p in files)
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a whole file, in hexadecimal; of several gigabytes it is computed once."""
    path = Path(path)
    return _sha256(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, _modified: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_digest(path: str | Path | None) -> str:
    """A short text that differs between files of different content, without reading it all.

    Of a file its size, first and last megabyte count; of a folder the names and sizes in it.
    What is no path (None, `pretrained`, a pattern) stands for itself.
    """
    path = Path(str(path))
    digest = hashlib.sha256()
    if path.is_dir():
        for entry in sorted(path.rglob("*")):
            digest.update(f"{entry.name} {entry.stat().st_size}\n".encode())
    elif path.is_file():
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(str(size).encode())
            for start in (0, max(size - _SAMPLE, 0)):
                file.seek(start)
                digest.update(file.read(_SAMPLE))
    else:
        return str(path)
    return digest.hexdigest()[:16]


def hold_lock(path: str | Path) -> TextIO | None:
    """Hold the lock file `path` until it is closed or this process ends.

    Worker processes do not inherit this kind of lock.

    Returns:
        The open file, or None where there are no such locks.

    Raises:
        RuntimeError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    path = Path(path)
    file = path.open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise RuntimeError(
                f"another process is at work on {path}. Wait for it or stop it first."
            ) from error
        path.unlink(missing_ok=True)  # a file system without locks
        return None
    return file


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


def save_safetensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """A safetensors file of PyTorch tensors, atomically, with the usual permissions of a file."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        temporary.touch()
        permissions = stat.S_IMODE(temporary.stat().st_mode)
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        save_file(contiguous, temporary, metadata={"format": "pt"})
        temporary.chmod(permissions)  # the library lets nobody but the owner read


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
    mmap = mmap and zipfile.is_zipfile(path)  # torch's format before 1.6 cannot be mapped
    try:
        check_archive(path)
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            start = file.read(16)
        if not start.startswith((b"PK", b"\x80")):  # neither a zip archive nor a pickle
            raise ValueError(f"{path} is not a torch file: it begins with {start!r}") from error
        if "Unsupported" not in str(error) and "GLOBAL" not in str(error):
            raise ValueError(f"{path} is damaged or is not a torch file") from error
        raise ValueError(
            f"{path} holds pickled code, not only tensors, and is not loaded: "
            "running code from a file is unsafe. Save it again as a plain dict of tensors."
        ) from error
    except PermissionError:
        raise
    except Exception as error:  # the loader raises a dozen kinds on rubbish
        raise ValueError(f"{path} is damaged, cut short, or is not a torch file") from error


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
    """A file of the project: below the current folder, or else in the checkout of this package.

    Returns `relative` itself if it is in neither.
    """
    relative = Path(relative)
    checkout = Path(__file__).resolve().parents[2]
    in_checkout = checkout / relative
    return in_checkout if not relative.exists() and in_checkout.exists() else relative
