"""Extraction killed with SIGKILL and run again gives the bytes of an undisturbed run.

Kills come from a fork server that has imported everything, so a process costs milliseconds.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from talk2dino.cli import extract, extract_text
from talk2dino.features import extract as stage
from talk2dino.features import job, parts
from talk2dino.features.extract import image_features
from talk2dino.features.parts import JOURNAL
from talk2dino.features.store import read_features

if not hasattr(os, "fork"):
    pytest.skip("needs POSIX processes", allow_module_level=True)

IMAGES = 24


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
    """Run, and be killed in the middle of the `fatal`-th write of rows or journal."""
    real_write, count = parts._write_at, 0

    def write(file, offset, data):
        nonlocal count
        count += 1
        if count == fatal:
            real_write(file, offset, memoryview(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        real_write(file, offset, data)

    parts._write_at = write
    run_command(main, arguments)


def dies_in_replace(main, arguments, fatal, after):
    """Run, and be killed just before or after the `fatal`-th renaming of the job."""
    real_replace, count = os.replace, 0

    def replace(source, target):
        nonlocal count
        count += 1
        if count == fatal and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real_replace(source, target)
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    job.os.replace = replace
    run_command(main, arguments)


def dies_in_removal(main, arguments, fatal):
    """Run, and be killed just before the `fatal`-th removal of a folder."""
    real_rmtree, count = shutil.rmtree, 0

    def rmtree(folder):
        nonlocal count
        count += 1
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        real_rmtree(folder)

    job.shutil.rmtree = rmtree
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
    finish(start(fork_server, run_command, extract.main, image_arguments(images, path)))
    return path.read_bytes()


def test_kills_at_random_moments(fork_server, images, undisturbed, tmp_path):
    out = tmp_path / "val.pth"
    arguments = image_arguments(images, out)
    moments, kills = random.Random(0), 0
    while kills < 10:
        process = start(fork_server, run_command, extract.main, arguments)
        process.join(moments.uniform(0.05, 0.4))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if kills < 10 and out.exists() and not out.with_name("val.pth.parts").exists():
            assert out.read_bytes() == undisturbed
            out.unlink()  # done before it was killed: once more from the start
    finish(start(fork_server, run_command, extract.main, [*arguments, "--overwrite"]))
    assert out.read_bytes() == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["val.pth"]


def test_kills_in_the_middle_of_writes(fork_server, images, undisturbed, tmp_path):
    """Every run dies in its 5th write (a batch is three), leaving half of it behind."""
    out = tmp_path / "val.pth"
    arguments = image_arguments(images, out)
    kills, stops = 0, []
    while True:
        process = start(fork_server, dies_in_write, extract.main, arguments, 5)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        journal = tmp_path / "val.pth.parts" / "split00000" / JOURNAL
        stops.append(journal.read_bytes().count(b"\n"))
    assert kills >= 10
    assert stops == sorted(stops), "finished batches were lost"
    assert out.read_bytes() == undisturbed


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fatal", [1, 2, 3, 4])
def test_kills_around_every_renaming(fork_server, images, undisturbed, tmp_path, fatal, after):
    """Renamed are: the settings, the unfinished file, the result, the note that it is done."""
    out = tmp_path / "val.pth"
    arguments = image_arguments(images, out)
    process = start(fork_server, dies_in_replace, extract.main, arguments, fatal, after)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    finish(start(fork_server, run_command, extract.main, arguments))
    assert out.read_bytes() == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["val.pth"]


def test_kills_while_the_work_folder_is_removed(fork_server, images, undisturbed, tmp_path):
    """Removed are the rows, then, after the settings, the folder: only that last kill is final."""
    out, folder = tmp_path / "val.pth", tmp_path / "val.pth.parts"
    arguments = image_arguments(images, out)
    start(fork_server, dies_in_removal, extract.main, arguments, 1).join()
    assert (folder / "settings.json").exists()
    finish(start(fork_server, run_command, extract.main, arguments))
    assert not folder.exists()
    start(fork_server, dies_in_removal, extract.main, [*arguments, "--overwrite"], 2).join()
    assert folder.exists()
    assert not (folder / "settings.json").exists()
    assert out.read_bytes() == undisturbed
    assert extract.main(arguments) == 2  # the file exists: nothing is computed again unasked
    finish(start(fork_server, run_command, extract.main, [*arguments, "--overwrite"]))
    assert out.read_bytes() == undisturbed
    assert not folder.exists()


def test_finished_batches_are_not_computed_again(fork_server, images, tmp_path, monkeypatch):
    arguments = image_arguments(images, tmp_path / "val.pth")
    start(fork_server, dies_in_write, extract.main, arguments, 3 * 8 + 1).join()
    computed = []

    def counted(backbone, pixels, *rest):
        computed.append(len(pixels))
        return image_features(backbone, pixels, *rest)

    monkeypatch.setattr(stage, "image_features", counted)
    assert extract.main(arguments) == 0
    assert computed == [2] * 4  # eight of twelve batches were finished


def test_the_rest_can_be_done_with_another_batch_size(fork_server, images, undisturbed, tmp_path):
    """As after running out of memory; equal up to the order of floating point sums."""
    out = tmp_path / "val.pth"
    start(fork_server, dies_in_write, extract.main, image_arguments(images, out), 14).join()
    assert extract.main(image_arguments(images, out, "--batch_size", "5")) == 0
    (tmp_path / "whole.pth").write_bytes(undisturbed)
    torch.testing.assert_close(
        read_features(out).image_features,
        read_features(tmp_path / "whole.pth").image_features,
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_failure_before_the_kill_is_still_reported(fork_server, images, tmp_path, capsys):
    folder = tmp_path / "coco"
    shutil.copytree(images.folder, folder)
    (folder / "001.jpg").write_bytes(b"")
    more = ["--data_dir", str(folder)]
    arguments = image_arguments(images, tmp_path / "a.pth", *more)
    process = start(fork_server, dies_in_write, extract.main, arguments, 10)
    process.join()
    assert extract.main(arguments) == 1
    assert "image 101 (001.jpg)" in capsys.readouterr().err
    assert extract.main(image_arguments(images, tmp_path / "b.pth", *more)) == 1
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_shards_are_the_same_after_a_kill(fork_server, images, tmp_path):
    flags = ["--write_as_wds", "--n_shards", "2", "--n_in_splits", "2"]
    arguments = image_arguments(images, tmp_path / "a", *flags)
    finish(start(fork_server, run_command, extract.main, arguments))
    arguments = image_arguments(images, tmp_path / "b", *flags)
    for fatal in (4, 30):
        start(fork_server, dies_in_write, extract.main, arguments, fatal).join()
    for fatal in (1, 2, 3):
        start(fork_server, dies_in_replace, extract.main, arguments, fatal, True).join()
    finish(start(fork_server, run_command, extract.main, arguments))
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [f"shard0000{number}.tar" for number in range(4)]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_text_command_completes_its_input_in_spite_of_kills(
    fork_server, images, undisturbed, tmp_path
):
    arguments = {}
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(undisturbed)
        path = str(tmp_path / name)
        arguments[name] = ["--ann_path", path, "--model", "toy", "--device", "cpu"]
        arguments[name] += ["--batch_size", "8"]
    finish(start(fork_server, run_command, extract_text.main, arguments["a.pth"]))
    for fatal in (3, 4, 3):
        start(fork_server, dies_in_write, extract_text.main, arguments["b.pth"], fatal).join()
        assert (tmp_path / "b.pth").read_bytes() == undisturbed
    for fatal, after in ((1, False), (2, False), (2, True)):  # the last is after the result
        replace = (extract_text.main, arguments["b.pth"], fatal, after)
        start(fork_server, dies_in_replace, *replace).join()
    finish(start(fork_server, run_command, extract_text.main, arguments["b.pth"]))
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]


def test_the_real_command_with_workers_is_killed_and_run_again(images, undisturbed, tmp_path):
    arguments = image_arguments(images, tmp_path / "val.pth", "--workers", "2")
    code = (
        "import sys, torch; torch.set_num_threads(1); "
        "from talk2dino.cli.extract import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments]
    journal = tmp_path / "val.pth.parts" / "split00000" / JOURNAL
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (journal.exists() and journal.stat().st_size):
            time.sleep(0.005)  # a busy loop would take a core from the command
        process.kill()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "val.pth").read_bytes() == undisturbed
