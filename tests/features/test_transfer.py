"""Copies beside a GPU's work: nothing lost, nothing early, in order; with CUDA's calls played."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from talk2dino.features import transfer
from talk2dino.features.chunks import Chunk
from talk2dino.features.decode import DecodedBatch
from talk2dino.features.transfer import fetched_behind, sent_ahead

CPU, CUDA = torch.device("cpu"), SimpleNamespace(type="cuda")


class Played:
    """Stands for CUDA's streams and events and writes down what is asked of them."""

    def __init__(self):
        self.calls = []

    def note(self, *words):
        self.calls.append(" ".join(words))

    def Stream(self, device):
        return SimpleNamespace(
            name="side", wait_stream=lambda other: self.note("side waits for", other.name)
        )

    def current_stream(self, device):
        return SimpleNamespace(name="main", wait_stream=lambda side: self.note("main waits"))

    @contextmanager
    def stream(self, side):
        self.note("on side:")
        yield


class Pixels:
    """A tensor that says when it is sent and who uses it."""

    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def to(self, device, non_blocking):
        assert non_blocking
        self.cuda.note("send", self.name)
        return self

    def record_stream(self, stream):
        self.cuda.note(self.name, "used by", stream.name)


@pytest.fixture
def cuda(monkeypatch):
    played = Played()
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(played, name))
    return played


def test_the_next_batch_is_sent_before_the_last_is_worked_on(cuda):
    batches = [DecodedBatch(Pixels(cuda, name), {n: "bad"}) for n, name in enumerate("ab")]
    seen = []
    for batch in sent_ahead(batches, CUDA):
        cuda.note("work on", batch.images.name)
        seen.append(batch.failures)
    assert seen == [{0: "bad"}, {1: "bad"}]
    assert cuda.calls == [
        *("on side:", "send a", "main waits", "a used by main"),
        *("on side:", "send b", "work on a", "main waits", "b used by main", "work on b"),
    ]


def test_results_are_handed_out_when_the_next_work_is_launched_and_they_have_arrived(
    cuda, monkeypatch
):
    def fetch(columns):
        (column,) = columns
        cuda.note("fetch", column.name)
        return SimpleNamespace(read=lambda: cuda.note(column.name, "arrived") or [column.name])

    monkeypatch.setattr(transfer, "Fetched", fetch)

    def batches():
        for name in "ab":
            cuda.note("work on", name)
            yield Chunk({"key": Pixels(cuda, name)}, {}, [name])

    for batch in fetched_behind(batches(), CUDA):
        cuda.note("store", *batch.captions, batch.columns["key"])
    assert cuda.calls == [
        *("work on a", "side waits for main", "on side:", "a used by side", "fetch a"),
        *("work on b", "side waits for main", "on side:", "b used by side", "fetch b"),
        *("a arrived", "store a a", "b arrived", "store b b"),
    ]


def test_without_batches_nothing_comes_out(cuda):
    assert list(sent_ahead([], CUDA)) == list(fetched_behind([], CUDA)) == []


def test_elsewhere_batches_pass_one_at_a_time():
    decoded = [DecodedBatch(torch.ones(1), {}, torch.zeros(1)), DecodedBatch(torch.ones(2))]
    sent = list(sent_ahead(decoded, CPU))
    assert [len(batch.images) for batch in sent] == [1, 2]
    assert sent[0].caption_inputs is not None
    assert sent[1].caption_inputs is None
    drawn = iter([Chunk({"a": torch.ones(1)}), Chunk({}, {1: "bad"})])
    assert next(fetched_behind(drawn, CPU)).columns == {"a": torch.ones(1)}
    assert next(drawn).failures == {1: "bad"}
