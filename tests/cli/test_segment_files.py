"""What the segment command reads, and where it writes."""

from pathlib import Path

import pytest

from talk2dino.cli.segment import Segment
from talk2dino.cli.segment_job import plan_outputs


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/b.jpg", "in/a.png", "in/notes.txt", "other/a.webp", "photo"):
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.touch()


def plan(*inputs, output="out", mask=None, scores=None, overwrite=False):
    words = ["--input", *inputs, "--output", output, "--textual_categories", "a"]
    for flag, value in (("--save_mask", mask), ("--save_scores", scores)):
        words += [] if value is None else [flag, value]
    return plan_outputs(Segment.parse([*words, *(["--overwrite"] if overwrite else [])]), {})


def written(planned):
    return [[str(path) for path in outputs.values()] for outputs in planned.values()]


def test_one_file_gives_exactly_the_named_output():
    planned = plan("photo", output="seg.jpg", mask="m.png", scores="")
    assert written(planned) == [["seg.jpg", "m.png", "seg_scores.npz"]]


def test_one_file_into_a_folder_keeps_its_name():
    Path("out").mkdir()
    for output in ("out", "new/"):
        planned = plan("in/b.jpg", output=output, mask="", scores="in")
        folder = output.rstrip("/")
        assert written(planned) == [[f"{folder}/b.png", f"{folder}/b_mask.png", "in/b_scores.npz"]]


def test_a_folder_gives_its_images_in_order():
    planned = plan("in", mask="", scores="elsewhere")
    assert [str(source) for source in planned] == ["in/a.png", "in/b.jpg"]
    assert written(planned)[0] == ["out/a.png", "out/a_mask.png", "elsewhere/a_scores.npz"]


def test_equal_stems_keep_their_suffix_and_repeated_inputs_count_once():
    planned = plan("in/a.png", "other", "in/a.png")
    assert written(planned) == [["out/a.png.png"], ["out/a.webp.png"]]


def test_equal_names_from_two_folders_are_refused():
    Path("other/b.jpg").touch()
    with pytest.raises(ValueError, match=r"out/b\.jpg\.png would be written more than once"):
        plan("in", "other")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": "out.png"}, r"--output out\.png is one file"),
        ({"mask": "m.png"}, r"--save_mask m\.png is one file"),
        ({"scores": "s.npz"}, r"--save_scores s\.npz is one file"),
        ({"output": "in"}, r"in/a\.png is an input"),
    ],
)
def test_one_file_for_several_inputs_and_the_folder_of_the_inputs_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        plan("in", **settings)


def test_existing_files_are_replaced_only_on_request():
    Path("out").mkdir()
    for name in ("a.png", "b.png"):
        (Path("out") / name).touch()
    with pytest.raises(FileExistsError, match=r"out/a.png exists already.*--overwrite"):
        plan("in")
    assert len(plan("in", overwrite=True)) == 2


def test_a_file_in_place_of_the_output_folder_is_refused():
    with pytest.raises(NotADirectoryError, match="photo is a file"):
        plan("in", output="photo")


def test_a_folder_in_place_of_an_output_file_is_refused():
    Path("dir.png").mkdir()
    Path("dir.png/b.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"dir\.png/b\.png is a folder"):
        plan("in/b.jpg", output="dir.png")


def test_names_too_long_for_their_outputs_are_shortened_and_stay_apart():
    for ending in ("a.jpg", "b.jpg", "é.jpg"):
        Path("in", "é" * 122 + ending).touch()  # 249 and 250 bytes
    planned = plan("in", mask="", scores="")
    names = [path.name for outputs in planned.values() for path in outputs.values()]
    assert len(set(names)) == 15 and max(len(name.encode()) for name in names) <= 255
