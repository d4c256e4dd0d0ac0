"""Finished rows on disk: what survives which kind of end."""

import errno
import json
import os

import pytest
import torch

from talk2dino.features.parts import JOURNAL, Batch, Parts


def batch(number, **changes):
    """Rows 3n, 3n+1, 3n+2 of two keys."""
    values = torch.arange(3 * number, 3 * number + 3)
    columns = {"a": values.float().view(3, 1, 1).expand(3, 2, 2), "b": values}
    return Batch(**{"stop": 3 * number + 3, "columns": columns, **changes})


def filled(folder, count=3):
    parts = Parts(folder, "input")
    for number in range(count):
        parts.append(batch(number))
    return parts


def test_rows_come_back_mapped_and_in_order(tmp_path):
    columns = filled(tmp_path).columns()
    assert columns["b"].tolist() == list(range(9))
    assert columns["a"].shape == (9, 2, 2)
    assert columns["a"][:, 1, 1].tolist() == list(range(9))


def test_rows_come_back_in_any_order(tmp_path):
    order = torch.tensor([8, 7, 6, 5, 4, 3, 2, 1, 0])
    assert filled(tmp_path).columns(order)["b"].tolist() == order.tolist()


def test_every_kind_of_number_is_kept(tmp_path):
    columns = {
        name: torch.tensor([[0, 1], [1, 0]]).to(getattr(torch, name))
        for name in ("float32", "float16", "bfloat16", "int64", "bool")
    }
    parts = Parts(tmp_path, "")
    parts.append(Batch(2, columns))
    for name, column in Parts(tmp_path, "").columns().items():
        torch.testing.assert_close(column, columns[name], rtol=0, atol=0)


def test_work_goes_on_where_it_ended(tmp_path):
    filled(tmp_path, 2).close()
    parts = Parts(tmp_path, "input")
    assert (parts.stop, parts.rows) == (6, 6)
    parts.append(batch(2))
    assert parts.columns()["b"].tolist() == list(range(9))


def test_failures_and_captions_are_remembered(tmp_path):
    parts = Parts(tmp_path, "input")
    parts.append(Batch(2, {}, {0: "gone", 1: "broken"}))
    one = {key: rows[:1] for key, rows in batch(0).columns.items()}
    parts.append(Batch(4, one, {3: "bad"}, ["a cat"]))
    again = Parts(tmp_path, "input")
    assert again.failures == {0: "gone", 1: "broken", 3: "bad"}
    assert (again.stop, again.rows, again.captions) == (4, 1, ["a cat"])


def test_rows_without_their_line_are_cut_off(tmp_path):
    filled(tmp_path, 2).close()
    with (tmp_path / "b.rows").open("ab") as file:
        file.write(b"half a row")
    (tmp_path / "new.rows").write_bytes(b"rows of a key that no line knows")
    parts = Parts(tmp_path, "input")
    assert (tmp_path / "b.rows").stat().st_size == 6 * 8
    assert not (tmp_path / "new.rows").exists()
    parts.append(batch(2))
    assert parts.columns()["b"].tolist() == list(range(9))


@pytest.mark.parametrize("end", [b'{"stop": 9, "rows"', b"not json\n"])
def test_a_broken_last_line_is_cut_off(tmp_path, end):
    filled(tmp_path, 2).close()
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(end)
    parts = Parts(tmp_path, "input")
    assert parts.stop == 6
    parts.append(batch(2))
    assert Parts(tmp_path, "input").stop == 9


def test_a_line_whose_rows_are_lost_does_not_count(tmp_path):
    filled(tmp_path, 3).close()
    os.truncate(tmp_path / "b.rows", 50)  # as after a power cut
    parts = Parts(tmp_path, "input")
    assert (parts.stop, parts.rows) == (6, 6)
    assert len((tmp_path / JOURNAL).read_text().splitlines()) == 2


def test_work_on_another_input_is_refused(tmp_path):
    filled(tmp_path).close()
    with pytest.raises(ValueError, match="unfinished work on another input.*--overwrite"):
        Parts(tmp_path, "other input")


def test_a_kill_before_the_first_line_leaves_nothing(tmp_path):
    (tmp_path / "input.txt").touch()
    assert Parts(tmp_path, "input").stop == 0


class Full:
    """A file on a full disk: takes a few bytes, then none."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        if self._room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._file.write(data[: self._room])
        self._room -= written
        return written


@pytest.mark.parametrize("name", ["a.rows", "b.rows", JOURNAL])
def test_a_full_disk_loses_only_the_batch_at_hand(tmp_path, name):
    parts = filled(tmp_path, 2)
    file = parts._file(tmp_path / name)
    parts._files[str(tmp_path / name)] = Full(file, 10)
    with pytest.raises(RuntimeError, match="No space left.*first 6 items are kept.*same command"):
        parts.append(batch(2))
    parts.close()
    again = Parts(tmp_path, "input")
    again.append(batch(2))
    assert again.columns()["b"].tolist() == list(range(9))


def test_too_little_room_is_seen_before_it_is_used_up(tmp_path):
    parts = filled(tmp_path, 1)
    parts.check_room(9)
    with pytest.raises(RuntimeError, match=r"need \d+\.\d GB more .* are free. Make room"):
        parts.check_room(10**15)
    parts.check_room(10**15, elsewhere=2 * 10**15)


def test_the_journal_is_readable(tmp_path):
    filled(tmp_path, 1).close()
    line = json.loads((tmp_path / JOURNAL).read_text())
    assert line["columns"] == {"a": ["float32", [2, 2]], "b": ["int64", []]}


def test_removing_leaves_nothing(tmp_path):
    parts = filled(tmp_path / "parts")
    parts.remove()
    assert not list(tmp_path.iterdir())
