"""One picture of the segment command; colours above all."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from talk2dino.cli.segment import Segment
from talk2dino.cli.segment_job import SegmentJob, scoring_bytes
from talk2dino.methods.talk2dino.config import SegmenterConfig
from talk2dino.methods.talk2dino.projection import ProjectionConfig
from talk2dino.methods.talk2dino.segmenter import build_segmenter
from talk2dino.pictures.drawing import class_colours
from talk2dino.segmenter import ClassQuery
from talk2dino.sizes import WHOLE, scoring_size

CPU = torch.device("cpu")


class ColourSegmenter:
    """Scores a pixel by one colour channel per class; remembers what it was shown."""

    def embed_classes(self, names):
        return torch.eye(3)[: len(names)]

    def window_scores(self, windows, query):
        classes, background = query.rows, query.background
        self.windows = windows
        scores = torch.einsum("bkhw,ck->bchw", windows / 255, classes)
        if background is None:
            return scores
        return torch.cat([torch.full_like(scores[:, :1], background), scores], dim=1)


def make_job(segmenter, rows, names, background=None, refined=True, device=CPU, **more):
    rules = SimpleNamespace(protocol=WHOLE, refines=("pamr",) if refined else ())
    colours = class_colours(len(names), background is not None)
    command = Segment()
    vars(command).update(more)
    job = SegmentJob(command, SimpleNamespace(demo=rules), names, colours, device)
    job.segmenter, job.query = segmenter, ClassQuery(tuple(names), rows, None, background)
    return job


def task(tmp_path, image, **outputs):
    image.save(tmp_path / "source.png")
    return tmp_path / "source.png", {**outputs, "output": tmp_path / "overlay.png"}


def test_a_red_picture_is_red_for_the_backbone_and_in_the_overlay(tmp_path):
    config = SegmenterConfig(
        projection=ProjectionConfig(hidden_layer=True, dino_embed_dim=192, num_attn_head=3),
        projection_weights="seeded:0",
        vision_model="toy",
        text_model="toy",
        input_size=56,
    )
    segmenter = build_segmenter(config)
    seen = []
    segmenter.vision.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    job = make_job(segmenter, segmenter.embed_classes(["rose"]), ["rose"], opacity=0.25)
    job.segment(*task(tmp_path, Image.new("RGB", (50, 30), (255, 0, 0))))
    pixels = (seen[0] * segmenter.vision.std + segmenter.vision.mean) * 255
    assert pixels[0].mean(dim=(1, 2)).tolist() == pytest.approx([255, 0, 0], abs=1e-3)
    with Image.open(tmp_path / "overlay.png") as overlay:
        painted = np.array(overlay.getpixel((25, 15)))
    expected = 0.75 * np.array([255, 0, 0]) + 0.25 * class_colours(1)[0]
    assert np.abs(painted - expected).max() <= 1


def test_red_green_and_blue_get_the_labels_of_their_classes(tmp_path):
    image = Image.new("RGB", (30, 10), (10, 10, 10))
    for index, colour in enumerate([(255, 0, 0), (0, 255, 0)]):
        image.paste(colour, (10 * index, 0, 10 * index + 10, 10))
    names = ["background", "red", "green", "blue"]
    job = make_job(ColourSegmenter(), torch.eye(3), names, background=0.5)
    line = job.segment(*task(tmp_path, image, save_mask=tmp_path / "mask.png"))
    with Image.open(tmp_path / "mask.png") as mask:
        labels = np.asarray(mask)
    assert labels[5, [5, 15, 25]].tolist() == [1, 2, 0]
    assert line.endswith("background 33%, red 33%, green 33%")


def test_a_class_of_few_pixels_is_not_said_to_have_none(tmp_path):
    image = Image.new("RGB", (50, 40), (255, 0, 0))
    image.putpixel((3, 3), (0, 255, 0))
    job = make_job(ColourSegmenter(), torch.eye(3), ["red", "green", "blue"])
    assert job.segment(*task(tmp_path, image)).endswith("red 100%, green <1%")


def test_exif_orientation_reaches_every_file(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    work = task(tmp_path, Image.new("RGB", (40, 20)), save_scores=tmp_path / "s.npz")
    Image.new("RGB", (40, 20)).save(work[0], exif=exif)
    make_job(ColourSegmenter(), torch.eye(3), "abc").segment(*work)
    with np.load(tmp_path / "s.npz") as saved:
        assert saved["scores"].shape == (3, 40, 20)


def test_a_larger_picture_is_scored_at_max_side(tmp_path):
    segmenter = ColourSegmenter()
    job = make_job(segmenter, torch.eye(3), "abc", max_side=30)
    job.segment(*task(tmp_path, Image.new("RGB", (60, 20))))
    assert segmenter.windows.shape == (1, 3, 10, 30)
    assert scoring_size(20, 60, None) == scoring_size(20, 60, 60) == (20, 60)
    assert scoring_size(1, 1000, 10) == (1, 10)


@pytest.mark.parametrize(
    ("options", "long_side"),
    [({}, 50), ({"max_side": 60}, 60), ({"max_side": 80}, 70), ({"refined": False}, 70)],
)
def test_a_huge_picture_is_refined_at_a_smaller_size_unless_one_is_named(
    tmp_path, monkeypatch, capsys, options, long_side
):
    monkeypatch.setattr("talk2dino.cli.segment_job._HUGE_PIXELS", 1000)
    monkeypatch.setattr("talk2dino.cli.segment_job._HUGE_SIDE", 50)
    segmenter = ColourSegmenter()
    job = make_job(segmenter, torch.eye(1, 3), "a", **options)
    job.segment(*task(tmp_path, Image.new("RGB", (70, 20))))
    assert segmenter.windows.shape[-1] == long_side
    said = capsys.readouterr().out
    assert ("at a long side of 50 pixels; --max_side 70 keeps its size" in said) == (not options)


def test_the_line_names_the_five_largest_classes(tmp_path):
    class Stripes:
        def window_scores(self, windows, query):
            classes = query.rows
            width = windows.shape[-1]
            labels = (torch.arange(width) * len(classes) // width).expand(windows.shape[-2:])
            return torch.nn.functional.one_hot(labels, len(classes)).permute(2, 0, 1)[None].float()

    job = make_job(Stripes(), torch.eye(7), "abcdefg")
    line = job.segment(*task(tmp_path, Image.new("RGB", (70, 5))))
    assert line.endswith("a 14%, b 14%, c 14%, d 14%, e 14%, ...")


def test_a_failing_write_leaves_no_file_behind(tmp_path):
    work = task(tmp_path, Image.new("RGB", (40, 20)))
    work[1]["output"].mkdir()  # in the way
    job = make_job(ColourSegmenter(), torch.eye(3), "abc")
    with pytest.raises(OSError, match="overlay"):
        job.segment(*work)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["overlay.png", "source.png"]


def test_memory_is_estimated_for_the_cpu_only(tmp_path, monkeypatch):
    size = (1000, 1000)
    plain = scoring_bytes(*size, size, 10, refined=False)
    assert scoring_bytes(*size, size, 10, refined=True) > 2 * plain
    assert scoring_bytes(*size, (100, 100), 10, refined=True) < plain
    Image.new("1", (900, 900)).save(tmp_path / "big.png")
    names = [str(number) for number in range(5_000)]
    job = make_job(None, torch.eye(5_000), names, refined=False)
    monkeypatch.setattr("talk2dino.cli.segment_job.free_memory", lambda: 2**30)
    with pytest.raises(ValueError, match=r"30.* GiB of memory, 1.0 GiB are free.*--max_side 2048"):
        job.check(tmp_path / "big.png")
    make_job(None, torch.eye(5_000), names, refined=False, device=torch.device("cuda")).check(
        tmp_path / "big.png"
    )
    monkeypatch.setattr("talk2dino.cli.segment_job.free_memory", lambda: None)
    job.check(tmp_path / "big.png")
