"""What all tests share: no network, few threads, and the photographs."""

import multiprocessing
import os
import runpy
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import talk2dino.cli  # noqa: F401  before torch: threads wait as they do in the commands

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each, in the processes of the tests as well
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would download fails at once instead
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

from tests.seeds import drawn_once

ROOT = Path(__file__).parents[1]
PRELOADED = [
    *(
        "pytest",
        "torch.distributed",
        "torch._dynamo",  # which every optimiser imports when it is made: a second and more
        "talk2dino.cli.train",
        "talk2dino.methods.talk2dino.training.job",
    ),
    "talk2dino.cli.extract",
    *("talk2dino.features.extract", "talk2dino.features.text"),
    *("talk2dino.cli.pretrain", "talk2dino.methods.ovsegmentor.pretraining.job"),
    *("talk2dino.cli.evaluate_published", "talk2dino.benchmarks.job", "mmseg.datasets"),
    "tests.preload",
]


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or min(2, os.cpu_count() or 1)))


@pytest.fixture(autouse=True, scope="session")
def _draw_seeded_weights_once():
    with drawn_once():
        yield


@pytest.fixture(scope="session")
def fork_server():
    """Starts processes that have everything imported, so that one costs milliseconds.

    There is one such server per test process: what it has imported is decided here, once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    here = os.getcwd()
    os.chdir(ROOT)  # where the server finds these tests, and not the `tests` of a library
    forkserver.ensure_running()
    os.chdir(here)
    return context


@pytest.fixture
def run_python(fork_server, tmp_path_factory):
    """Run `python WORDS` in a folder, with the package of a tree, from what is imported already.

    A fresh interpreter imports torch for seconds; this process has it, and forgets the package.
    """

    def run_python(words, cwd, source):
        log = tmp_path_factory.mktemp("log")
        child = fork_server.Process(target=_python, args=(words, cwd, source, log))
        child.start()
        child.join()
        said = [(log / name).read_text() for name in ("stdout", "stderr")]
        return SimpleNamespace(returncode=child.exitcode, stdout=said[0], stderr=said[1])

    return run_python


def _python(words, cwd, source, log):
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        os.dup2(os.open(log / name, os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.chdir(cwd)
    torch.set_num_threads(1)
    for name in list(sys.modules):
        if name.split(".")[0] in ("talk2dino", "src"):
            del sys.modules[name]
    sys.path[:] = [str(cwd), str(source), *(p for p in sys.path if p != str(ROOT / "src"))]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def photos(root: Path) -> Path:
    """A folder with astronaut.png, coffee.png and chelsea.png."""
    return root / "assets"


@pytest.fixture
def a_second_later(monkeypatch):
    """What is called before a resumed run: its event file is named a second later.

    TensorBoard reads a folder's files by name, which is time in seconds, then process number: two
    runs within one second may be read in the wrong order. Real ones are never that close.
    """

    def later():
        clock = SimpleNamespace(time=lambda: time.time() + 1)
        monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", clock)

    return later
