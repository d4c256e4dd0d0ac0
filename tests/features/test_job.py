"""A run's outputs, names, and work folder."""

import json
import subprocess
import sys
from dataclasses import InitVar, dataclass, fields

import pytest
import torch

from talk2dino.features.captions import CaptionInput
from talk2dino.features.chunks import Chunk, Extraction
from talk2dino.features.job import Job
from talk2dino.features.store import FeatureFile, read_features, write_features
from talk2dino.processes import Processes


@dataclass(eq=False)
class Positions(Extraction):
    """Rows that hold their own positions, two per batch."""

    unit, cpu_batch, models = "images", 2, None
    fails_at: InitVar[int | None] = None
    failing: InitVar[tuple[int, ...]] = ()
    version: InitVar[int] = 0
    size: int = 56
    section: str = "vision"
    keys: tuple[str, ...] = ("dino_features",)
    device: str = "cpu"
    batch_size: int = 2

    def __post_init__(self, fails_at, failing, version):
        super().__post_init__()
        self.fails_at, self.failing, self.version, self.made = fails_at, failing, version, []

    def recorded(self):
        return {"size": self.size}

    def items(self, collection):
        return [[image["id"], self.version] for image in collection.features.images]

    def results(self, collection, chunks):
        for items in chunks:
            if self.fails_at in items:
                raise KeyboardInterrupt
            self.made.append(items)
            rows = torch.tensor([[row] for row in items if row not in self.failing])
            failures = {row: f"image {row}: gone" for row in items if row in self.failing}
            yield Chunk({"dino_features": rows} if len(rows) else {}, failures)


@pytest.fixture
def begin(tmp_path):
    """Begins a job on some images."""

    def job(count=4, out="val.pth", **changes):
        path = tmp_path / f"{count}.json"
        if not path.exists():
            images = [{"id": n, "file_name": "x"} for n in range(count)]
            annotations = [{"id": n, "image_id": n, "caption": ""} for n in range(count)]
            path.write_text(json.dumps({"images": images, "annotations": annotations}))
        data = CaptionInput(changes.pop("data", path))
        own = {entry.name for entry in fields(Job)} & changes.keys()
        of_job = {name: changes.pop(name) for name in own}
        return Job(data, Positions(**changes), tmp_path / "out" / out, **of_job)

    return job


@pytest.fixture
def begun(begin):
    """A job that was ended after its first batch."""

    def job(**changes):
        job = begin(fails_at=2, **changes)
        with pytest.raises(KeyboardInterrupt), job:
            job.make(0)
        return job

    return job


def computed(job):
    """The batches that are computed when the job goes on."""
    column = job.make(0).image_features["dino_features"]
    assert column.flatten().tolist() == list(range(4))
    return job.extraction.made


def files(tmp_path):
    folder = tmp_path / "out"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_one_split_is_the_named_file(begin, tmp_path):
    assert begin().outputs == {0: [tmp_path / "out" / "val.pth"]}


def test_splits_are_numbered_from_the_offsets(begin, tmp_path):
    planned = begin(n_in_splits=4, in_batch_offset=2, out_offset=10).outputs
    out = tmp_path / "out"
    assert planned == {2: [out / "val_12.pth"], 3: [out / "val_13.pth"]}


def test_a_job_makes_the_split_of_its_number_only(begin, tmp_path):
    planned = begin(n_in_splits=4, job_id=2).outputs
    assert planned == {2: [tmp_path / "out" / "val_2.pth"]}


def test_shard_numbers_continue_over_splits(begin):
    planned = begin(n_in_splits=2, out_offset=5, n_shards=2, out="shards").outputs
    names = [[path.name for path in paths] for paths in planned.values()]
    assert names == [["shard00005.tar", "shard00006.tar"], ["shard00007.tar", "shard00008.tar"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_in_splits": 0}, "at least 1"),
        ({"n_in_splits": 2, "in_batch_offset": 2}, "with 2 splits .* 0 to 1"),
        ({"in_batch_offset": -1}, "with 1 splits .* 0 to 0"),
        ({"n_in_splits": 2, "job_id": 2}, "--job_id 2: with 2 splits"),
        ({"n_in_splits": 2, "job_id": 1, "in_batch_offset": 1}, "--job_id the only"),
        ({"out_offset": -1}, "out_offset must be at least 0"),
    ],
)
def test_impossible_divisions_are_refused(begin, changes, message):
    with pytest.raises(ValueError, match=message):
        begin(**changes)


def test_a_finished_job_leaves_its_output_only(begin, tmp_path):
    with begin() as job:
        job.make(0)
    assert files(tmp_path) == ["val.pth"]


def test_a_job_that_fails_before_any_work_leaves_no_folder(begin, tmp_path):
    with pytest.raises(ZeroDivisionError), begin():
        raise ZeroDivisionError
    assert files(tmp_path) == []


def test_work_is_kept_and_found_again(begin, begun):
    assert begun().resumed is False
    with begin() as job:
        assert job.resumed
        assert computed(job) == [range(2, 4)]


def test_other_settings_are_refused_and_named(begin, begun):
    begun()
    with pytest.raises(ValueError, match=r"other settings \(size was 56, now 112\).*--overwrite"):
        begin(size=112)
    assert begin().resumed


def test_overwrite_drops_work_with_other_settings_only(begin, begun):
    begun()
    assert begin(overwrite=True).resumed
    with begin(size=112, overwrite=True) as job:
        assert not job.resumed
        assert len(computed(job)) == 2


def test_work_on_another_input_is_refused_unless_it_may_be_dropped(begin, begun):
    begun()
    with pytest.raises(ValueError, match="another input"):
        begin(version=1).make(0)
    with begin(version=1, overwrite=True) as job:
        assert len(computed(job)) == 2


def test_finished_splits_are_not_done_again(begin):
    with pytest.raises(KeyboardInterrupt), begin(6, n_in_splits=3, failing=(1,)) as job:
        job.make(0)
        raise KeyboardInterrupt
    again = begin(6, n_in_splits=3)
    assert again.pending() == [1, 2]
    assert again.failures() == ["image 1: gone"]


def test_an_existing_output_is_refused(begin, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "val_1.pth").touch()
    with pytest.raises(FileExistsError, match=r"val_1\.pth exists already.*--overwrite"):
        begin(n_in_splits=2)
    with begin(n_in_splits=2, overwrite=True):
        pass
    assert files(tmp_path) == ["val_1.pth"]


def test_the_own_output_does_not_stop_a_job_that_was_killed_after_writing_it(
    begin, begun, tmp_path
):
    begun()
    (tmp_path / "out" / "val.pth").touch()
    assert begin().resumed


def test_items_that_fail_are_named_and_left_out(begin):
    with begin(failing=(1,)) as job:
        assert job.make(0).image_features["dino_features"].flatten().tolist() == [0, 2, 3]
        assert job.failures() == ["image 1: gone"]


def test_where_all_items_fail_nothing_is_kept(begin, tmp_path):
    message = "none of the 4 images could be read; image 0: gone"
    with pytest.raises(RuntimeError, match=message), begin(failing=range(4)) as job:
        job.make(0)
    assert files(tmp_path) == []


def test_a_file_loses_no_more_items_than_allowed(begin, tmp_path):
    with begin() as job:
        job.make(0)
    path = tmp_path / "out" / "val.pth"
    again = {"data": path, "failing": (1,), "overwrite": True}
    with pytest.raises(RuntimeError, match="would lose them.*--max_failures 1"):
        begin(**again).make(0)
    with begin(**again, max_failures=1) as job:
        assert job.make(0).num_images == 3


def test_a_lock_held_by_another_process_is_reported(begin, begun, tmp_path):
    pytest.importorskip("fcntl")
    lock = begun().folder / "lock"
    code = (
        f"import fcntl; f = open({str(lock)!r}, 'w'); "
        "fcntl.lockf(f, 6); print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline()
        with pytest.raises(RuntimeError, match=r"another process is at work on .*val\.pth\.parts"):
            begin()
        holder.communicate(b"\n")


def test_damaged_settings_name_the_folder_to_delete(begin, begun):
    (begun().folder / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"Delete the folder .*val\.pth\.parts"):
        begin()


def test_the_layout_is_that_of_the_input_unless_chosen(begin, tmp_path):
    features = FeatureFile([{"id": 1, "file_name": "x"}], [])
    write_features(features, tmp_path / "published.pth", "coco")
    job = begin(data=tmp_path / "published.pth")
    for layout, expected in ((None, "coco"), ("columnar", "columnar")):
        job.layout = layout
        job.make(0)
        assert read_features(job.path).layout == expected


# Several processes.


class FirstOfTwo(Processes):
    """Without the other one, which dies before its chunks are there."""

    def gather(self, value):
        if value is None:
            raise RuntimeError("[gloo] Connection closed by peer")
        return [value, value]


def test_a_process_computes_every_nth_chunk(begin):
    job = begin(9)
    job.processes = FirstOfTwo(0, 2)
    with pytest.raises(RuntimeError, match="another process of this extraction has ended"):
        job.make(0)
    assert job.extraction.made == [range(2), range(4, 6), range(8, 9)]
