"""Several processes on one extraction, connected by gloo as `torch.distributed.run` does it."""

import errno
import os
import signal

import pytest
import torch

from talk2dino.cli.extract import Extract, ExtractText
from talk2dino.features import chunks
from talk2dino.features.store import read_features
from tests.ranks import run_ranks

if not hasattr(os, "fork"):
    pytest.skip("needs POSIX processes", allow_module_level=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from tests.features.conftest import Coco

    coco = Coco(tmp_path_factory.mktemp("ranks") / "coco", 23)
    (coco.folder / "014.jpg").write_bytes(b"")
    return coco


def image_arguments(coco, out, *more):
    flags = ["--batch_size", "2", "--extract_disentangled_self_attn", "--max_failures", "1"]
    return coco.arguments(out, *flags, *more)


def fails_in_write(fatal):
    """The `fatal`-th write of a chunk finds the disk full."""
    count = 0
    real_write = chunks._write

    def write(*arguments):
        nonlocal count
        count += 1
        if count == fatal:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_write(*arguments)

    chunks._write = write


def dies_in_write(fatal):
    """The process is killed instead of the `fatal`-th write."""
    fails_in_write(fatal)
    failing_write = chunks._write

    def write(*arguments):
        try:
            failing_write(*arguments)
        except OSError:
            os.kill(os.getpid(), signal.SIGKILL)

    chunks._write = write


@pytest.fixture
def logs(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """The file that one process makes."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("alone") / "val.pth"
    assert Extract.main(image_arguments(images, path)) == 0
    return path.read_bytes()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "logs")


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_write_the_bytes_of_one(
    fork_server, images, alone, tmp_path, logs, count
):
    arguments = image_arguments(images, tmp_path / "val.pth")
    codes, said = run_ranks(fork_server, Extract.main, arguments, count, logs)
    assert codes == [0] * count
    assert (tmp_path / "val.pth").read_bytes() == alone
    assert "image 114 (014.jpg)" in said[0]
    assert said[1] == ""
    assert files(tmp_path) == ["val.pth", "val.pth.failed.txt"]


def test_captions_sorted_by_length_are_divided_too(fork_server, images, alone, tmp_path, logs):
    arguments = {}
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(alone)
        arguments[name] = ["--ann_path", str(tmp_path / name), "--model", "toy"]
        arguments[name] += ["--device", "cpu", "--batch_size", "1"]  # two chunks
    codes, _ = run_ranks(fork_server, ExtractText.main, arguments["a.pth"], 2, logs)
    assert codes == [0, 0]
    torch.set_num_threads(1)
    assert ExtractText.main(arguments["b.pth"]) == 0
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert read_features(tmp_path / "a.pth").caption_features["ann_feats"].shape == (43, 512)


def test_too_many_failures_are_the_first_process_s_to_report(fork_server, images, tmp_path, logs):
    # torch.distributed.run ends all processes as soon as one exits with an error.
    arguments = image_arguments(images, tmp_path / "val.pth", "--max_failures", "0")
    codes, said = run_ranks(fork_server, Extract.main, arguments, 2, logs)
    assert codes == [1, 0]
    assert "1 failures are more than --max_failures 0" in said[0]
    assert said[1] == ""


def test_an_error_of_one_process_ends_all_and_keeps_what_the_others_made(
    fork_server, images, tmp_path, logs
):
    arguments = image_arguments(images, tmp_path / "val.pth")
    disturbed = (fails_in_write, 3)
    codes, said = run_ranks(fork_server, Extract.main, arguments, 2, logs, disturbed)
    assert codes == [1, 1]
    assert "could not write (No space left on device)" in said[1]
    assert "another process of this extraction has ended. What is finished is kept" in said[0]
    assert files(tmp_path) == ["val.pth.parts"]


def test_after_a_kill_any_number_of_processes_goes_on(fork_server, images, alone, tmp_path, logs):
    arguments = image_arguments(images, tmp_path / "val.pth")
    codes, said = run_ranks(fork_server, Extract.main, arguments, 2, logs, (dies_in_write, 3))
    assert codes == [1, -signal.SIGKILL]
    assert "another process of this extraction has ended" in said[0]
    assert "run the same command again to go on" in said[0]
    finished = sorted((tmp_path / "val.pth.parts").glob("split*/chunk*.safetensors"))
    numbers = [int(path.stem.removeprefix("chunk")) for path in finished]
    assert numbers == [0, 1, 2, 3, 4, 6, 8, 10]  # of twelve; the second process died in its third
    codes, _ = run_ranks(fork_server, Extract.main, arguments, 3, logs, (dies_in_write, 1))
    assert codes == [1, -signal.SIGKILL, 1]
    assert Extract.main(arguments) == 0
    assert (tmp_path / "val.pth").read_bytes() == alone
    assert files(tmp_path) == ["val.pth", "val.pth.failed.txt"]


def test_wrong_arguments_are_refused_before_anything_is_joined(images, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Extract.main(image_arguments(images, tmp_path / "v.pth", "--batch_size", "0")) == 2
    assert files(tmp_path) == []


def test_a_rank_without_a_number_of_processes_is_refused(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Extract.main(image_arguments(images, tmp_path / "v.pth")) == 1
    assert "RANK is '1'" in capsys.readouterr().err
