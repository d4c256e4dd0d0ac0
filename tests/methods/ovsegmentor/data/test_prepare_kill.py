"""A run of several processes that is killed, and goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from talk2dino.methods.ovsegmentor.data.prepare import filter_captions

SRC = Path(__file__).parents[4] / "src"
ROWS = 30_000


def command(mode, *arguments):
    return [sys.executable, "-m", "talk2dino", "prepare-captions", mode, *map(str, arguments)]


def start(mode, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    return subprocess.Popen(
        command(mode, *arguments),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(mode, *arguments):
    process = start(mode, *arguments)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors


def kill_when(process, condition):
    """SIGKILL as soon as the condition holds; the workers must end too."""
    while process.poll() is None and not condition():
        time.sleep(0.002)
    assert process.poll() is None, "it was done before it could be killed"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.01)
    assert children


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    path = tmp_path_factory.mktemp("captions") / "cc.tsv"
    words = ["a dog", "two Cats, here", "sunset", "a man's bus", 'knives; "glasses"', "sheep"]
    with path.open("w") as file:
        file.writelines(f"{i}.jpg\t{words[i % 6]} {i}\n" for i in range(ROWS))
    return path


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")


@needs_proc
def test_the_workers_of_a_killed_filter_end_and_it_goes_on_to_the_same_bytes(captions, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = ("--metafile", captions, "--processors", 3, "--lemmas", "lemminflect")
    filter_captions(captions, whole, 3)  # undisturbed, in one process
    kill_when(
        start("filter", *settings, "--dstdir", parts),
        lambda: any(parts.glob(".cc12m_*.tmp-*")),
    )
    assert len(list(parts.glob("cc12m_*.csv"))) < 3
    finish("filter", *settings, "--dstdir", parts)
    assert content(parts) == content(whole)


def content(folder):
    """Every file of a folder but locks, with its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}
