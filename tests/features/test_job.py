"""A run's outputs, names, and work folder."""

import subprocess
import sys

import pytest
import torch

from talk2dino.features.chunks import Chunk
from talk2dino.features.job import Division, Job, Output, Work, plan_outputs
from talk2dino.features.store import FeatureFile, read_features
from talk2dino.processes import Processes
from talk2dino.progress import silent

SETTINGS = {"model": "toy", "resize_dim": 56}


def outputs(tmp_path, **changes):
    return plan_outputs(tmp_path / "val.pth", Division(**changes))


def work(total=4, fingerprint="input", made=None, fails_at=None):
    """Rows that hold their own positions, two per batch; `made` lists the batches computed."""

    def batches(wanted):
        for items in wanted:
            if fails_at in items:
                raise KeyboardInterrupt
            if made is not None:
                made.append(items)
            yield Chunk({"a": torch.tensor(items)})

    return Work(fingerprint, total, 2, lambda fresh: None, batches)


def begun(tmp_path, settings=SETTINGS, **changes):
    """A job that was ended after its first batch."""
    job = Job(outputs(tmp_path, **changes), settings)
    with pytest.raises(KeyboardInterrupt), job:
        job.collected(job.outputs[0], work(fails_at=2), silent)
    return job


def computed(job, *arguments):
    """The batches that are computed when the job goes on."""
    made = []
    found = job.collected(job.outputs[0], work(*arguments, made=made), silent)
    assert found.columns["a"].tolist() == list(range(4))
    return made


def test_one_split_is_the_named_file(tmp_path):
    assert [o.files for o in outputs(tmp_path)] == [(tmp_path / "val.pth",)]


def test_splits_are_numbered_from_the_offsets(tmp_path):
    planned = outputs(tmp_path, n_in_splits=4, in_batch_offset=2, out_offset=10)
    assert [o.split for o in planned] == [2, 3]
    assert [o.files[0].name for o in planned] == ["val_12.pth", "val_13.pth"]


def test_a_job_makes_the_split_of_its_number_only(tmp_path):
    (planned,) = outputs(tmp_path, n_in_splits=4, job_id=2)
    assert (planned.split, planned.files[0].name) == (2, "val_2.pth")


def test_shard_numbers_continue_over_splits(tmp_path):
    planned = plan_outputs(tmp_path, Division(n_in_splits=2, out_offset=5, n_shards=2))
    names = [[path.name for path in output.files] for output in planned]
    assert names == [["shard00005.tar", "shard00006.tar"], ["shard00007.tar", "shard00008.tar"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_in_splits": 0}, "at least 1"),
        ({"n_in_splits": 2, "in_batch_offset": 2}, "the splits are 0 to 1"),
        ({"in_batch_offset": -1}, "the splits are 0 to 0"),
        ({"n_in_splits": 2, "job_id": 2}, "the jobs are 0 to 1"),
        ({"n_in_splits": 2, "job_id": 1, "in_batch_offset": 1}, "--job_id the only"),
        ({"out_offset": -1}, "must not be negative"),
    ],
)
def test_impossible_divisions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Division(**changes)


def test_a_finished_job_leaves_no_folder(tmp_path):
    with Job(outputs(tmp_path), SETTINGS) as job:
        job.collected(job.outputs[0], work(), silent)
        job.finish(job.outputs[0])
    assert not list(tmp_path.iterdir())


def test_a_job_that_fails_before_any_work_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), Job(outputs(tmp_path), SETTINGS):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_work_is_kept_and_found_again(tmp_path):
    assert begun(tmp_path).resumed is False
    with Job(outputs(tmp_path), SETTINGS) as job:
        assert job.resumed
        assert computed(job) == [range(2, 4)]


def test_other_settings_are_refused_and_named(tmp_path):
    begun(tmp_path)
    with pytest.raises(
        ValueError, match=r"other settings \(resize_dim: 56 there, 112 asked for\).*--overwrite"
    ):
        Job(outputs(tmp_path), {**SETTINGS, "resize_dim": 112})
    assert Job(outputs(tmp_path), SETTINGS).resumed


def test_overwrite_drops_work_with_other_settings(tmp_path):
    begun(tmp_path)
    with Job(outputs(tmp_path), {**SETTINGS, "amp": True}, overwrite=True) as job:
        assert not job.resumed
        assert len(computed(job)) == 2


def test_overwrite_continues_work_with_the_same_settings(tmp_path):
    begun(tmp_path)
    assert Job(outputs(tmp_path), SETTINGS, overwrite=True).resumed


def test_overwrite_drops_work_on_another_input(tmp_path):
    begun(tmp_path)
    with Job(outputs(tmp_path), SETTINGS, overwrite=True) as job:
        assert len(computed(job, 4, "other")) == 2


def test_work_on_another_input_is_refused(tmp_path):
    begun(tmp_path)
    job = Job(outputs(tmp_path), SETTINGS)
    with pytest.raises(ValueError, match="another input"):
        job.collected(job.outputs[0], work(4, "other"), silent)


def test_finished_splits_are_not_done_again(tmp_path):
    planned = outputs(tmp_path, n_in_splits=3)
    with pytest.raises(KeyboardInterrupt), Job(planned, SETTINGS) as job:
        job.finish(planned[0], ["image 3: gone"])
        raise KeyboardInterrupt
    again = Job(planned, SETTINGS)
    assert again.pending() == planned[1:]
    assert again.failures() == ["image 3: gone"]


def test_an_existing_output_is_refused(tmp_path):
    (tmp_path / "val_1.pth").touch()
    with pytest.raises(FileExistsError, match=r"val_1\.pth exists already.*--overwrite"):
        Job(outputs(tmp_path, n_in_splits=2), SETTINGS)
    with Job(outputs(tmp_path, n_in_splits=2), SETTINGS, overwrite=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["val_1.pth"]


def test_the_own_output_does_not_stop_a_job_that_was_killed_after_writing_it(tmp_path):
    begun(tmp_path)
    (tmp_path / "val.pth").touch()
    assert Job(outputs(tmp_path), SETTINGS).resumed


def test_a_second_process_is_refused(tmp_path):
    pytest.importorskip("fcntl")
    with Job(outputs(tmp_path), SETTINGS) as job:
        code = f"import fcntl; fcntl.lockf(open({str(job.folder / 'lock')!r}, 'w'), 6)"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "BlockingIOError" in other.stderr


def test_a_lock_held_by_another_process_is_reported(tmp_path):
    pytest.importorskip("fcntl")
    begun(tmp_path)
    code = (
        f"import fcntl; f = open({str(tmp_path / 'val.pth.parts' / 'lock')!r}, 'w'); "
        "fcntl.lockf(f, 6); print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline()
        with pytest.raises(RuntimeError, match=r"another process is at work on .*val\.pth\.parts"):
            Job(outputs(tmp_path), SETTINGS)
        holder.communicate(b"\n")


def test_damaged_settings_name_the_folder_to_delete(tmp_path):
    begun(tmp_path)
    (tmp_path / "val.pth.parts" / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"Delete the folder .*val\.pth\.parts"):
        Job(outputs(tmp_path), SETTINGS)


def test_an_output_that_cannot_be_written_keeps_the_older_file_and_the_work(tmp_path):
    class Broken(FeatureFile):
        @property
        def num_images(self):
            raise OSError(28, "No space left on device")

    (tmp_path / "val.pth").write_bytes(b"older")
    output = Output(0, 1, (tmp_path / "val.pth",))
    with pytest.raises(RuntimeError, match="could not write.*No space left.*kept in .*scratch"):
        output.write(Broken([], []), tmp_path / "scratch")
    assert (tmp_path / "val.pth").read_bytes() == b"older"


def test_the_layout_is_that_of_the_input_unless_chosen(tmp_path):
    features = FeatureFile([{"id": 1}], [])
    features.layout = "coco"
    for layout, expected in ((None, "coco"), ("columnar", "columnar")):
        Output(0, 1, (tmp_path / "a.pth",), layout).write(features, tmp_path)
        assert read_features(tmp_path / "a.pth").layout == expected


# Several processes.


class FirstOfTwo(Processes):
    """Without the other one, which dies before its chunks are there."""

    def gather(self, value):
        if value is None:
            raise RuntimeError("[gloo] Connection closed by peer")
        return [value, value]


def test_a_process_computes_every_nth_chunk(tmp_path):
    made = []
    with Job(outputs(tmp_path), {}) as job:
        job.processes = FirstOfTwo(0, 2)
        with pytest.raises(RuntimeError, match="another process of this extraction has ended"):
            job.collected(job.outputs[0], work(9, made=made), silent)
    assert made == [range(2), range(4, 6), range(8, 9)]
