"""Files are either complete or absent, and damaged ones are named."""

import contextlib
import errno
import fcntl
import os
import pickle
import subprocess
import sys
import threading
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from talk2dino import files
from talk2dino.files import (
    atomic_files,
    atomic_path,
    check_archive,
    check_file,
    check_folder_writable,
    check_not_inputs,
    check_writable,
    content_digest,
    find_in_checkout,
    hold_folder,
    hold_lock,
    is_unfinished,
    listed,
    load_torch,
    save_safetensors,
    save_torch,
)


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_complete_file_replaces_the_old_one_and_makes_its_folder(tmp_path):
    target = tmp_path / "deep" / "out.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["out.txt"]


def test_two_threads_that_write_one_file_do_not_disturb_each_other(tmp_path):
    target, both = tmp_path / "out.txt", threading.Barrier(2, timeout=20)

    def write(text):
        with atomic_path(target) as temporary:
            temporary.write_text(text)
            both.wait()
            written.append(temporary.read_text() == text)

    written = []
    threads = [threading.Thread(target=write, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == [True, True]
    assert target.read_text() in ("one", "two")
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path):
    target = tmp_path / "out.pth"
    with pytest.raises(OSError, match=r"out.pth") as caught, atomic_path(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "No space left" in str(caught.value)
    assert caught.value.errno == errno.ENOSPC
    assert not target.exists()


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="other.jpg"), atomic_path(tmp_path / "out.pth"):
        (tmp_path / "other.jpg").read_bytes()


def test_existing_files_are_not_overwritten_unasked(tmp_path):
    target = tmp_path / "weights.pth"
    check_writable(target)
    target.touch()
    with pytest.raises(FileExistsError, match=r"exists already.*--overwrite"):
        check_writable(target)
    check_writable(target, overwrite=True)


def test_a_folder_is_no_output_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; a file name is needed"):
        check_writable(tmp_path)


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file, so the folder"):
        check_folder_writable(tmp_path / "file" / "deeper")


def test_a_folder_without_write_permission_is_refused():
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs a folder that nobody can write to; /proc is one")
    with pytest.raises(PermissionError, match="cannot write in the folder"):
        check_folder_writable("/proc/self/new")


def test_equal_values_give_equal_bytes_under_any_name(tmp_path):
    for name in ("a.pth", "longer_name.pth"):
        save_torch({"x": torch.arange(5)}, tmp_path / name)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "longer_name.pth").read_bytes()
    assert load_torch(tmp_path / "a.pth", mmap=True)["x"].tolist() == [0, 1, 2, 3, 4]


class Code:
    def __reduce__(self):
        return (os.system, ("true",))


def test_pickled_code_is_refused(tmp_path):
    path = tmp_path / "code.pth"
    torch.save({"x": Code()}, path)
    with pytest.raises(ValueError, match="holds pickled code"):
        load_torch(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_with_code_is_refused(tmp_path):
    path = tmp_path / "code.pth"
    path.write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match="code.pth"):
        load_torch(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, share):
    path = tmp_path / "cut.pth"
    save_torch({"x": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="cut.pth is damaged"):
        load_torch(path)


def test_an_empty_file_and_a_text_file_are_named(tmp_path):
    path = tmp_path / "empty.pth"
    path.touch()
    with pytest.raises(ValueError, match=r"empty \(0 bytes\)"):
        load_torch(path)
    path.write_text("<html><body>404</body></html>")
    with pytest.raises(ValueError, match="is not a torch file"):
        load_torch(path)
    path.write_text("hello, this is no tensor")
    with pytest.raises(ValueError, match="is not a torch file"):
        load_torch(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.pth: no such file"):
        load_torch(tmp_path / "absent.pth")


def test_a_lock_is_held_once_per_process_and_freed_by_closing(tmp_path):
    path = tmp_path / "x.lock"
    held = hold_lock(path)
    code = f"from talk2dino.files import hold_lock; hold_lock({str(path)!r})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another process is at work on" in other.stderr
    held.close()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_folder_is_held_by_one_at_a_time_and_without_a_file(tmp_path, monkeypatch):
    with hold_folder(tmp_path / "made"):
        other = hold_folder(tmp_path / "made")
        with pytest.raises(RuntimeError, match="another process is at work in"), other:
            pass
        assert not [*(tmp_path / "made").iterdir()]
    with hold_folder(tmp_path / "made"):
        pass

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with hold_folder(tmp_path / "made"):
        pass


def test_a_digest_tells_contents_apart(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 10)
    (tmp_path / "b").write_bytes(b"x" * 10)
    (tmp_path / "c").write_bytes(b"x" * 9 + b"y")
    a, b, c = (content_digest(tmp_path / name) for name in "abc")
    assert a == b != c
    before = content_digest(tmp_path)
    (tmp_path / "d").touch()
    assert content_digest(tmp_path) != before
    assert content_digest("pretrained") == "pretrained"


def test_an_error_of_pillow_has_no_number_to_show(tmp_path):
    message = r"^\S*out.png: could not write the file \(broken\)$"
    with pytest.raises(OSError, match=message), atomic_path(tmp_path / "out.png"):
        raise OSError("broken")


def test_files_of_the_checkout_are_found_from_anywhere(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    assert find_in_checkout("configs/toy.yaml") == root / "configs" / "toy.yaml"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "toy.yaml").touch()
    assert str(find_in_checkout("configs/toy.yaml")) == "configs/toy.yaml"
    assert str(find_in_checkout("configs/none.yaml")) == "configs/none.yaml"


def test_safetensors_can_be_read_by_whoever_can_read_other_files(tmp_path):
    save_safetensors({"weight": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "w.safetensors")
    (tmp_path / "other.txt").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("w.safetensors", "other.txt")]
    assert modes[0] == modes[1]
    stored = load_file(tmp_path / "w.safetensors")
    assert torch.equal(stored["weight"], torch.arange(6.0).reshape(2, 3).T)


def test_what_is_no_file_is_named_for_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path, "a folder"), (tmp_path / "pipe", "a named pipe or a device")):
        with pytest.raises(ValueError, match=f"{path} is {kind}, not a file"):
            check_file(path)
    with pytest.raises(FileNotFoundError, match="no such thing"):
        check_file(tmp_path / "none", "thing")
    with pytest.raises(ValueError, match="pipe is a named pipe"):
        load_torch(tmp_path / "pipe")


def test_whether_files_are_finished_is_not_asked_of_a_pipe_or_of_endless_brackets(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    asked = threading.Thread(target=is_unfinished, args=(tmp_path / "config.json",), daemon=True)
    asked.start()
    asked.join(timeout=5)
    assert not asked.is_alive()
    assert not is_unfinished(tmp_path / "deep.json")


def test_hidden_companions_are_not_listed(tmp_path):
    for name in ("b.json", "a.json", "._a.json", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in listed(tmp_path, "*.json")] == ["a.json", "b.json"]


def test_an_archive_whose_parts_would_fill_the_memory_is_not_unpacked(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**6))
    with pytest.raises(ValueError, match="claim 1000000 bytes"):
        check_archive(path)
    with pytest.raises(ValueError, match=r"a\.pth is damaged"):
        load_torch(path)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("last", ["b.json", "b.html"])
def test_several_files_are_the_old_ones_the_new_ones_or_known_as_unfinished(
    tmp_path, monkeypatch, last
):
    replace, names, calls = os.replace, ("a.txt", last), []

    def write(text):
        with atomic_files(tmp_path, *names) as folder:
            for name in names:
                (folder / name).write_text(f'"{text}"')

    def dying(source, target):
        calls.append(target)
        if len(calls) == fatal:
            raise Killed
        replace(source, target)

    for fatal in range(1, 6):  # noqa: B007  read by `dying`
        write("old")
        calls.clear()
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(os, "replace", dying)
            write("new")
        there = [(tmp_path / name).read_text() for name in names if (tmp_path / name).exists()]
        complete = there in (['"old"', '"old"'], ['"new"', '"new"'])
        assert complete or is_unfinished(tmp_path / last) or not (tmp_path / last).exists()
    assert len(calls) < 5, "every renaming was tried"
    write("new")
    assert [(tmp_path / name).read_text() for name in names] == ['"new"', '"new"']


def test_what_the_new_files_lack_does_not_stay_of_the_old_ones(tmp_path):
    for names in (("words/list", "b.json"), ("b.json",)):
        with atomic_files(tmp_path, "words", "b.json") as folder:
            for name in names:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def leave_unfinished(path):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        os._exit(0)


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path, fork_server):
    process = fork_server.Process(target=leave_unfinished, args=(tmp_path / "a.txt",))
    process.start()
    process.join()
    assert len(list(tmp_path.glob(".a.txt.tmp-*"))) == 1
    (tmp_path / ".mine.tmp-1").touch()  # somebody else's
    with atomic_path(tmp_path / "b.txt") as temporary:
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp-1", "b.txt"]


def test_what_another_process_is_writing_stays(tmp_path, fork_server):
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
        process = fork_server.Process(target=check_folder_writable, args=(tmp_path,))
        process.start()
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "a.txt").read_text() == "whole"


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_the_longest_names_can_be_written(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"


def test_an_output_that_is_an_input_is_refused_under_any_name(tmp_path):
    (tmp_path / "link.pth").symlink_to(tmp_path / "a.pth")
    check_not_inputs([tmp_path / "b.pth"], [None, tmp_path / "a.pth"])
    with pytest.raises(ValueError, match=r"link.pth is an input"):
        check_not_inputs([tmp_path / "link.pth"], [None, tmp_path / "a.pth"])


@pytest.mark.parametrize("size", [5 << 20, 70 << 20])
def test_a_change_in_the_middle_of_a_file_changes_its_digest(tmp_path, monkeypatch, size):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(size)
    before = content_digest(path)
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"x")
    assert content_digest(path) != before


def test_the_digest_of_a_large_file_is_computed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_LARGE", 1)
    path = tmp_path / "large"
    path.write_bytes(b"x")
    before = content_digest(path)
    (kept,) = (tmp_path / "cache" / "talk2dino" / "digests").iterdir()
    kept.write_text(kept.read_text().replace(before.removeprefix("sha256:"), "0" * 64))
    files._sha256.cache_clear()
    assert content_digest(path) == "sha256:" + "0" * 64
    os.utime(path)
    assert content_digest(path) == before


def test_a_disk_that_is_full_under_safetensors_is_an_error_of_the_system(tmp_path):
    with (
        pytest.raises(OSError, match=r"could not write the file .*m.safetensors"),
        atomic_files(tmp_path, "m.safetensors", "config.json") as folder,
    ):
        (folder / "m.safetensors").mkdir()  # the library cannot write there either
        save_safetensors({"x": torch.zeros(2)}, folder / "m.safetensors")
    assert not list(tmp_path.iterdir())
