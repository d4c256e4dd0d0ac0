"""Finished work on disk: what survives which kind of end."""

import errno
import os
from types import SimpleNamespace

import pytest
import torch

from talk2dino.features import chunks as stage
from talk2dino.features.chunks import Chunk, Chunks, fetched_behind
from talk2dino.features.text import TextExtraction


def chunk(number):
    """Rows 3n, 3n+1, 3n+2 of two keys."""
    values = torch.arange(3 * number, 3 * number + 3)
    return Chunk({"a": values.float().view(3, 1, 1).expand(3, 2, 2), "b": values})


def ranges(total, size):
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def begun(folder, ranges):
    """Chunks of which none is written."""
    chunks = Chunks(folder / "split", ranges)
    chunks.take_over("input")
    return chunks


def filled(folder, *numbers):
    """Chunks of nine items, some of which are written."""
    chunks = begun(folder, ranges(9, 3))
    for number in numbers:
        chunks.write(number, chunk(number))
    return chunks


def test_rows_come_back_mapped_and_in_order_whoever_was_first(tmp_path):
    whole = filled(tmp_path, 2, 0, 1).together()
    assert whole.columns["b"].tolist() == list(range(9))
    assert whole.columns["a"].shape == (9, 2, 2)
    assert whole.columns["a"][:, 1, 1].tolist() == list(range(9))


def test_every_kind_of_number_is_kept(tmp_path):
    columns = {
        name: torch.tensor([[0, 1], [1, 0]]).to(getattr(torch, name))
        for name in ("float32", "float16", "bfloat16", "int64", "bool")
    }
    chunks = begun(tmp_path, ranges(2, 2))
    chunks.write(0, Chunk(columns))
    for name, column in chunks.together().columns.items():
        torch.testing.assert_close(column, columns[name], rtol=0, atol=0)


def test_keys_may_be_views_of_one_tensor(tmp_path):
    tensor = torch.arange(4.0).view(1, 4)
    chunks = begun(tmp_path, ranges(1, 1))
    chunks.write(0, Chunk({"a": tensor[:, :1], "b": tensor[:, 1:]}))
    assert chunks.together().columns["b"].tolist() == [[1, 2, 3]]


def test_finished_chunks_are_found_again(tmp_path):
    filled(tmp_path, 0, 2)
    assert Chunks(tmp_path / "split", ranges(8, 3)).finished() == {0, 2}


def test_failures_and_captions_come_back(tmp_path):
    chunks = begun(tmp_path, ranges(5, 2))
    chunks.write(0, Chunk({}, {0: "gone", 1: "broken"}))
    chunks.write(1, Chunk({"b": torch.tensor([2])}, {3: "bad"}, ["a cat"]))
    chunks.write(2, Chunk({"b": torch.tensor([4])}, {}, [""]))
    for _ in range(2):  # a kill after they were put together
        whole = chunks.together()
        assert whole.failures == {0: "gone", 1: "broken", 3: "bad"}
        assert whole.captions == ["a cat", ""]
        assert whole.columns["b"].tolist() == [2, 4]
        assert chunks.finished() == {0, 1, 2}


def test_items_that_all_failed_have_no_columns(tmp_path):
    chunks = begun(tmp_path, ranges(1, 2))
    chunks.write(0, Chunk({}, {0: "gone"}))
    assert chunks.together().columns == {}


@pytest.mark.parametrize("size", [0, 50, 300])
def test_a_chunk_that_lost_its_end_does_not_count(tmp_path, size):
    chunks = filled(tmp_path, 0, 1, 2)
    os.truncate(tmp_path / "split" / "chunk0000001.safetensors", size)  # as after a power cut
    assert chunks.finished() == {0, 2}
    chunks.write(1, chunk(1))
    assert chunks.together().columns["b"].tolist() == list(range(9))


def test_work_on_another_input_is_refused(tmp_path):
    filled(tmp_path)
    with pytest.raises(ValueError, match="unfinished work on another input.*--overwrite"):
        Chunks(tmp_path / "split", ranges(9, 3)).take_over("other input")


def test_overwrite_drops_work_on_another_input_only(tmp_path):
    chunks = filled(tmp_path, 0, 1)
    chunks.take_over("input", overwrite=True)
    assert chunks.finished() == {0, 1}
    chunks.take_over("other input", overwrite=True)
    assert not chunks.finished()


def test_a_folder_without_a_finished_chunk_holds_nothing(tmp_path):
    chunks = filled(tmp_path)
    (chunks.folder / "chunk0000000.tmp").touch()
    assert chunks.finished() == set()
    chunks.write(0, chunk(0))
    assert chunks.finished() == {0}


@pytest.mark.parametrize("fatal", [1, 2, 5])
def test_a_full_disk_loses_only_what_is_at_hand(tmp_path, monkeypatch, fatal):
    """The first write is that of a chunk, the others put the rows of two keys together."""
    chunks, real, count = filled(tmp_path, 0, 1), stage._write, 0

    def full(file, data):
        nonlocal count
        count += 1
        if count == fatal:
            real(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_write", full)
        message = r"could not write \(No space left on device\). What is finished.*same command"
        with pytest.raises(RuntimeError, match=message):
            chunks.write(2, chunk(2))
            chunks.together()
    assert chunks.finished() == ({0, 1} if fatal == 1 else {0, 1, 2})
    chunks.write(2, chunk(2))
    assert chunks.together().columns["b"].tolist() == list(range(9))


def test_too_little_room_is_seen_before_it_is_used_up(tmp_path):
    chunks = filled(tmp_path, 0)
    chunks.check_room(0, 1)
    chunks.ranges = range(10**12)
    with pytest.raises(RuntimeError, match=r"need \d+\.\d+ GB more .* are free. Make room"):
        chunks.check_room(0, 1)
    chunks.check_room(0, 2 * 10**12)


# On their way from the device.


def test_results_are_handed_out_when_the_next_work_is_launched_and_they_have_arrived(monkeypatch):
    calls = []

    def fetch(columns):
        calls.append("fetch")
        return SimpleNamespace(read=lambda: calls.append("arrived") or columns)

    def results():
        for number in range(2):
            calls.append(f"work on {number}")
            yield Chunk({"a": torch.full((1,), number)}, {}, [str(number)])

    monkeypatch.setattr(stage, "Fetched", fetch)
    for result in fetched_behind(results(), SimpleNamespace(type="cuda")):
        calls.append(f"store {result.captions[0]} {int(result.columns['a'])}")
    assert calls == [
        *("work on 0", "fetch", "work on 1", "fetch"),
        *("arrived", "store 0 0", "arrived", "store 1 1"),
    ]
    assert list(fetched_behind([], SimpleNamespace(type="cuda"))) == []


def test_elsewhere_results_pass_one_at_a_time():
    drawn = iter([Chunk({"a": torch.ones(1)}), Chunk({}, {1: "bad"})])
    assert next(fetched_behind(drawn, torch.device("cpu"))).columns == {"a": torch.ones(1)}
    assert next(drawn).failures == {1: "bad"}


def limited(most, seen, problem="CUDA out of memory. Tried to allocate 1.00 GiB"):
    """A model that doubles its input and has memory for `most` items at once."""

    def model(items):
        seen.append(len(items))
        if len(items) > most:
            raise RuntimeError(problem)
        return items * 2

    return model


@pytest.fixture
def extraction():
    made = TextExtraction(device="cpu")
    made.runs_on = torch.device("cuda")
    return made


def test_batches_are_halved_until_they_fit_and_stay_so(extraction, caplog, monkeypatch):
    seen, freed, items = [], [], torch.arange(11)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(1))
    assert torch.equal(torch.cat(extraction.pieces(limited(3, seen), items)), items * 2)
    assert seen == [11, 5, 2, 2, 2, 2, 2, 1]
    assert len(extraction.pieces(limited(3, seen), items[:4])) == 2
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "11 captions at a time do not fit in the memory of cuda; going on with 5"
    assert len(told) == len(freed) == 2, "once per size"


@pytest.mark.parametrize(
    "problem",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory",
        "DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_a_lack_of_memory_has_many_names(extraction, problem):
    assert len(extraction.pieces(limited(2, [], problem), torch.ones(4))) == 2


def test_a_single_item_that_does_not_fit_is_an_error_and_others_are_not_taken_for_it(extraction):
    seen = []
    with pytest.raises(RuntimeError, match="shapes differ"):
        extraction.pieces(limited(1, seen, "shapes differ"), torch.ones(3))
    assert seen == [3] and extraction.pieces(limited(1, seen), torch.ones(0)) == []
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        extraction.pieces(limited(0, []), torch.ones(3))
