"""Extraction killed with SIGKILL and run again gives the bytes of an undisturbed run.

Kills come from a fork server that has imported everything, so a process costs milliseconds.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from talk2dino.cli.extract import Extract
from talk2dino.features import chunks
from talk2dino.features import extract as stage
from talk2dino.features.extract import image_features

if not hasattr(os, "fork"):
    pytest.skip("needs POSIX processes", allow_module_level=True)

IMAGES = 10


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from tests.features.conftest import Coco

    return Coco(tmp_path_factory.mktemp("kill") / "coco", IMAGES)


def image_arguments(coco, out, *more):
    flags = ["--batch_size", "2", "--extract_avg_self_attn", "--extract_disentangled_self_attn"]
    return coco.arguments(out, *flags, *more)


def run_command(main, arguments):
    torch.set_num_threads(1)
    sys.exit(main(arguments))


def dies_in_write(main, arguments, fatal):
    """Run, and be killed in the middle of the `fatal`-th write of a chunk or of all rows."""
    real_write, count = chunks._write, 0

    def write(file, data):
        nonlocal count
        count += 1
        if count == fatal:
            real_write(file, data[: len(data) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        real_write(file, data)

    chunks._write = write
    run_command(main, arguments)


def start(fork_server, target, *arguments):
    process = fork_server.Process(target=target, args=arguments)
    process.start()
    return process


def finish(process):
    process.join()
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def undisturbed(fork_server, images, tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "val.pth"
    finish(start(fork_server, run_command, Extract.main, image_arguments(images, path)))
    return path.read_bytes()


def finished(folder):
    return sorted((folder / "val.pth.parts" / "split00000").glob("chunk*.safetensors"))


def test_kills_in_the_middle_of_writes(fork_server, images, undisturbed, tmp_path):
    """Every run dies in its second write, of a chunk or of what they become together."""
    out = tmp_path / "val.pth"
    arguments = image_arguments(images, out)
    kills = 0
    while len(finished(tmp_path)) < 5:
        process = start(fork_server, dies_in_write, Extract.main, arguments, 2)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        assert len(finished(tmp_path)) == min(kills, 5), "a finished batch was lost"
    for fatal in (1, 7):
        start(fork_server, dies_in_write, Extract.main, arguments, fatal).join()
        assert len(finished(tmp_path)) == 5
    finish(start(fork_server, run_command, Extract.main, arguments))
    assert out.read_bytes() == undisturbed


def test_finished_batches_are_not_computed_again(fork_server, images, tmp_path, monkeypatch):
    arguments = image_arguments(images, tmp_path / "val.pth")
    start(fork_server, dies_in_write, Extract.main, arguments, 4).join()
    computed = []

    def counted(backbone, pixels, *rest):
        computed.append(len(pixels))
        return image_features(backbone, pixels, *rest)

    monkeypatch.setattr(stage, "image_features", counted)
    assert Extract.main(arguments) == 0
    assert computed == [2] * 2  # three of five batches were finished


def test_another_batch_size_is_not_mixed_in(fork_server, images, tmp_path, capsys):
    out = tmp_path / "val.pth"
    start(fork_server, dies_in_write, Extract.main, image_arguments(images, out), 3).join()
    assert Extract.main(image_arguments(images, out, "--batch_size", "4")) == 2
    assert "batch_size was 2, now 4" in capsys.readouterr().err


def test_a_picture_that_changed_since_the_kill_is_not_mixed_in(
    fork_server, images, tmp_path, capsys
):
    folder = shutil.copytree(images.folder, tmp_path / "coco")
    arguments = image_arguments(images, tmp_path / "val.pth", "--data_dir", str(folder))
    start(fork_server, dies_in_write, Extract.main, arguments, 3).join()
    os.utime(folder / "001.jpg", (0, 0))
    assert Extract.main(arguments) == 1
    assert "another input (other images or captions)" in capsys.readouterr().err


def test_a_failure_before_the_kill_is_still_reported(fork_server, images, tmp_path, capsys):
    folder = tmp_path / "coco"
    shutil.copytree(images.folder, folder)
    (folder / "001.jpg").write_bytes(b"")
    more = ["--data_dir", str(folder)]
    arguments = image_arguments(images, tmp_path / "a.pth", *more)
    process = start(fork_server, dies_in_write, Extract.main, arguments, 4)
    process.join()
    assert Extract.main(arguments) == 1
    assert "image 101 (001.jpg)" in capsys.readouterr().err
    assert Extract.main(image_arguments(images, tmp_path / "b.pth", *more)) == 1
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_the_real_command_with_workers_is_killed_and_run_again(images, undisturbed, tmp_path):
    arguments = image_arguments(images, tmp_path / "val.pth", "--workers", "2")
    code = (
        "import sys, torch; torch.set_num_threads(1); "
        "from talk2dino.cli.extract import Extract; sys.exit(Extract.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not finished(tmp_path):
            time.sleep(0.005)  # a busy loop would take a core from the command
        process.kill()
    assert Extract.main(arguments) == 0
    assert (tmp_path / "val.pth").read_bytes() == undisturbed
