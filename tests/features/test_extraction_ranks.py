"""Several processes on one extraction, connected by gloo as `torch.distributed.run` does it."""

import errno
import os
import signal

import pytest
import torch

from talk2dino.cli import extract, extract_text
from talk2dino.features import parts
from talk2dino.features.job import Division, Job, plan_outputs
from talk2dino.features.parts import JOURNAL, Batch, Parts
from talk2dino.features.ranges import Range, divided
from talk2dino.features.store import read_features
from talk2dino.features.work import Work, collected
from talk2dino.processes import Processes
from talk2dino.progress import silent
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
    """The `fatal`-th write of rows or journal finds the disk full."""
    count = 0
    real_write = parts._write_at

    def write(*arguments):
        nonlocal count
        count += 1
        if count == fatal:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_write(*arguments)

    parts._write_at = write


def dies_in_write(fatal):
    """The process is killed instead of the `fatal`-th write."""
    fails_in_write(fatal)
    failing_write = parts._write_at

    def write(*arguments):
        try:
            failing_write(*arguments)
        except OSError:
            os.kill(os.getpid(), signal.SIGKILL)

    parts._write_at = write


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
    assert extract.main(image_arguments(images, path)) == 0
    return path.read_bytes()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "logs")


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_write_the_bytes_of_one(
    fork_server, images, alone, tmp_path, logs, count
):
    arguments = image_arguments(images, tmp_path / "val.pth")
    codes, said = run_ranks(fork_server, extract.main, arguments, count, logs)
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
        arguments[name] += ["--device", "cpu", "--batch_size", "8"]
    codes, _ = run_ranks(fork_server, extract_text.main, arguments["a.pth"], 2, logs)
    assert codes == [0, 0]
    torch.set_num_threads(1)
    assert extract_text.main(arguments["b.pth"]) == 0
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert read_features(tmp_path / "a.pth").caption_features["ann_feats"].shape == (43, 512)


def test_too_many_failures_are_the_first_process_s_to_report(fork_server, images, tmp_path, logs):
    # torch.distributed.run ends all processes as soon as one exits with an error.
    arguments = image_arguments(images, tmp_path / "val.pth", "--max_failures", "0")
    codes, said = run_ranks(fork_server, extract.main, arguments, 2, logs)
    assert codes == [1, 0]
    assert "1 failures are more than --max_failures 0" in said[0]
    assert said[1] == ""


def test_an_error_of_one_process_ends_all_with_its_message(fork_server, images, tmp_path, logs):
    arguments = image_arguments(images, tmp_path / "val.pth")
    disturbed = (fails_in_write, 3)
    codes, said = run_ranks(fork_server, extract.main, arguments, 2, logs, disturbed)
    assert codes == [1, 1]
    assert "could not write (No space left on device)" in said[1]
    assert "error: process 1 of 2 failed: " in said[0]
    assert "could not write (No space left on device)" in said[0]
    assert files(tmp_path) == ["val.pth.parts"]


def test_after_a_kill_any_number_of_processes_goes_on(fork_server, images, alone, tmp_path, logs):
    arguments = image_arguments(images, tmp_path / "val.pth")
    codes, said = run_ranks(fork_server, extract.main, arguments, 2, logs, (dies_in_write, 6))
    assert codes == [1, -signal.SIGKILL]
    assert "another process of this extraction has ended" in said[0]
    assert "run the same command again to go on" in said[0]
    journals = sorted((tmp_path / "val.pth.parts").glob(f"split*/{JOURNAL}"))
    assert [len(path.read_text().splitlines()) for path in journals] == [6, 2]
    codes, _ = run_ranks(fork_server, extract.main, arguments, 3, logs, (dies_in_write, 2))
    assert codes == [1, -signal.SIGKILL, 1]
    assert extract.main(arguments) == 0
    assert (tmp_path / "val.pth").read_bytes() == alone
    assert files(tmp_path) == ["val.pth", "val.pth.failed.txt"]


def test_wrong_arguments_are_refused_before_anything_is_joined(images, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert extract.main(image_arguments(images, tmp_path / "v.pth", "--batch_size", "0")) == 2
    assert files(tmp_path) == []


def test_a_rank_without_a_number_of_processes_is_refused(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert extract.main(image_arguments(images, tmp_path / "v.pth")) == 1
    assert "RANK is '1'" in capsys.readouterr().err


# How the work is divided.


def spans(ranges):
    return [(whole.start, whole.stop) for whole in ranges]


def test_new_work_is_cut_into_even_ranges_of_whole_batches():
    ranges = divided([(Range(0, 100), 0)], 3, 8, torch.ones(100))
    assert spans(ranges) == [(0, 32), (32, 64), (64, 100)]


def test_ranges_are_even_in_cost():
    costs = torch.cat([torch.full((20,), 4.0), torch.ones(80)])
    assert spans(divided([(Range(0, 100), 0)], 2, 5, costs)) == [(0, 20), (20, 100)]


def test_unfinished_work_is_divided_where_it_stands():
    standing = [(Range(0, 40), 40), (Range(40, 80), 48), (Range(80, 100), 80)]
    assert spans(divided(standing, 2, 4, torch.ones(100))) == [(0, 40), (40, 80), (80, 100)]
    ranges = divided(standing, 4, 4, torch.ones(100))
    assert spans(ranges) == [(0, 40), (40, 48), (48, 64), (64, 80), (80, 88), (88, 100)]


def test_there_are_no_more_ranges_than_batches():
    assert spans(divided([(Range(0, 3), 0)], 8, 2, torch.ones(3))) == [(0, 2), (2, 3)]
    assert spans(divided([(Range(0, 3), 3)], 8, 2, torch.ones(3))) == [(0, 3)]


def test_rows_taken_over_twice_are_there_once(tmp_path):
    one, other = Parts(tmp_path / "one", "x"), Parts(tmp_path / "other", "x", start=2)
    one.append(Batch(2, {"a": torch.tensor([0.0, 1.0])}))
    other.append(Batch(4, {"a": torch.tensor([2.0])}, {3: "broken"}, ["two"]))
    other.append(Batch(5, {"a": torch.tensor([4.0])}, captions=["four"]))
    for _ in range(2):
        one.take_over(other)
    assert (one.stop, one.rows, one.failures) == (5, 4, {3: "broken"})
    assert one.columns()["a"].tolist() == [0.0, 1.0, 2.0, 4.0]
    assert one.captions == ["two", "four"]


def test_a_division_of_another_input_is_not_taken_for_this_one(tmp_path):
    outputs = plan_outputs(tmp_path / "val.pth", Division())
    with Job(outputs, {}) as job:
        job.keep_ranges(outputs[0], "input", [Range(0, 4), Range(4, 9)])
        assert job.ranges(outputs[0], "input", 9) == [Range(0, 4), Range(4, 9)]
        assert job.ranges(outputs[0], "other", 5) == [Range(0, 5)]


def test_the_first_process_to_fail_has_the_word(tmp_path):
    with Job(plan_outputs(tmp_path / "val.pth", Division()), {}) as job:
        job.processes = Processes(1, 3)
        job.check_others()
        job.tell_others("no room")
        job.processes = Processes(2, 3)
        job.tell_others("no time")
        with pytest.raises(RuntimeError, match="process 1 of 3 failed: no room"):
            job.check_others()


def test_a_word_that_is_not_written_yet_is_a_failure_too(tmp_path):
    with Job(plan_outputs(tmp_path / "val.pth", Division()), {}) as job:
        job.processes = Processes(0, 2)
        (job.folder / "failed.txt").touch()
        with pytest.raises(RuntimeError, match="another process of this extraction failed"):
            job.check_others()


class FirstOfTwo(Processes):
    """Without the other one, which has failed and could not leave word."""

    def gather(self, value):
        return [value, "process 1 of 2 failed: no room"]


def work_on(total):
    """Rows that hold their own positions, two per batch."""

    def batches(part):
        for start in range(part.start, part.stop, 2):
            yield Batch(start + 2, {"a": torch.tensor([start, start + 1])})

    return Work("input", torch.ones(total), 2, lambda fresh: None, batches)


def test_a_failure_that_nobody_could_write_down_ends_the_others(tmp_path):
    outputs = plan_outputs(tmp_path / "val.pth", Division())
    with Job(outputs, {}) as job:
        job.processes = FirstOfTwo(0, 2)
        with pytest.raises(RuntimeError, match="process 1 of 2 failed: no room"):
            collected(job, outputs[0], work_on(8), silent)


def test_rows_of_all_ranges_count_as_written_when_room_is_checked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Parts, "check_room", lambda parts, *counts: asked.append(counts))
    outputs = plan_outputs(tmp_path / "val.pth", Division())
    with Job(outputs, {}) as job:
        job.keep_ranges(outputs[0], "input", [Range(0, 4), Range(4, 10)])
        job.parts(outputs[0], "input").append(Batch(2, {"a": torch.tensor([0, 1])}))
        job.parts(outputs[0], "input", 4).append(Batch(8, {"a": torch.tensor([4, 5, 6, 7])}))
        found = collected(job, outputs[0], work_on(10), silent)
        assert found.columns()["a"].tolist() == list(range(10))
    assert asked == [(10, 4)]
