"""`dino_extraction_v2.py` from photographs to a feature file, and what it says when it cannot."""

import io
import json
import os
import signal
import tarfile
from functools import partial

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from talk2dino.backbones.seeded import seeded_state
from talk2dino.backbones.vision import (
    average_attention,
    head_embeddings,
    load_vision,
    official_shapes,
)
from talk2dino.cli.extract import Extract
from talk2dino.features import extract as stage
from talk2dino.features.captions import ImageSource
from talk2dino.features.extract import image_features
from talk2dino.features.job import Job
from talk2dino.features.keys import IMAGE_KEYS
from talk2dino.features.store import FeatureFile, read_features, write_features
from tests.literal import extraction as literal

ALL_KEYS = list(IMAGE_KEYS.values())


def folder_names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "coco")


def test_the_stored_features_are_those_of_the_backbone(tmp_path, coco):
    assert Extract.main(coco.arguments(tmp_path / "out.pth", *ALL_KEYS, "--batch_size", "4")) == 0
    stored = read_features(tmp_path / "out.pth")
    assert stored.images == coco.images
    assert stored.annotations == coco.annotations
    backbone = load_vision("toy")
    transform = backbone.image_transform(56, 56)
    pixels = [transform(Image.open(coco.folder / image["file_name"])) for image in coco.images]
    found = backbone(backbone.normalise(torch.stack(pixels)))
    expected = {
        "dino_features": found.cls,
        "avg_self_attn_out": average_attention(found.attention_logits, found.patches),
        "disentangled_self_attn": head_embeddings(found.attention_logits, found.patches),
        "self_attn_maps": found.attention_logits,
        "patch_tokens": found.patches,
        "second_last_out": found.penultimate_cls,
    }
    torch.testing.assert_close(stored.image_features, expected, rtol=1e-4, atol=1e-5)
    shapes = {key: tuple(column.shape) for key, column in stored.image_features.items()}
    assert shapes["disentangled_self_attn"] == (6, 3, 192)
    assert shapes["patch_tokens"] == (6, 16, 192)
    assert stored.settings["vision"] == {
        "model": "toy",
        "weights": "seeded:0",
        "resize_dim": 56,
        "crop_dim": 56,
        "dtype": "float32",
        "amp": False,
    }
    assert folder_names(tmp_path) == ["out.pth"]


def test_the_stored_features_are_those_of_the_literal_extraction(tmp_path, coco):
    flags = ["--extract_avg_self_attn", "--extract_disentangled_self_attn"]
    assert Extract.main(coco.arguments(tmp_path / "out.pth", *flags)) == 0
    stored = read_features(tmp_path / "out.pth").image_features
    state = seeded_state(0, official_shapes(load_vision("toy").model))
    paths = [coco.folder / image["file_name"] for image in coco.images]
    for row, record in enumerate(literal.extract(paths, state, 4, 56, 56)):
        for key in ("avg_self_attn_out", "disentangled_self_attn"):
            torch.testing.assert_close(stored[key][row], record[key], rtol=1e-4, atol=1e-5)


def test_without_a_feature_flag_the_cls_feature_is_stored(tmp_path, coco):
    assert Extract.main(coco.arguments(tmp_path / "out.pth")) == 0
    assert list(read_features(tmp_path / "out.pth").image_features) == ["dino_features"]


def test_without_an_output_path_the_annotation_path_is_used(coco):
    arguments = coco.arguments("x")
    at = arguments.index("--out_path")
    assert Extract.main(arguments[:at] + arguments[at + 2 :]) == 0
    assert read_features(coco.path.with_suffix(".pth")).num_images == 6


def test_worker_processes_give_the_same_file(tmp_path, coco):
    assert Extract.main(coco.arguments(tmp_path / "a.pth", "--batch_size", "4")) == 0
    assert (
        Extract.main(coco.arguments(tmp_path / "b.pth", "--batch_size", "4", "--workers", "2")) == 0
    )
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_half_precision_is_stored_and_close(tmp_path, coco):
    assert Extract.main(coco.arguments(tmp_path / "a.pth")) == 0
    assert Extract.main(coco.arguments(tmp_path / "b.pth", "--dtype", "float16", "--amp")) == 0
    full = read_features(tmp_path / "a.pth").image_features["dino_features"]
    half = read_features(tmp_path / "b.pth").image_features["dino_features"]
    assert half.dtype == torch.float16
    assert (half.float() - full).norm() / full.norm() < 2e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_number_type_of_mixed_precision_is_recorded(tmp_path, coco, dtype):
    assert Extract.main(coco.arguments(tmp_path / "a.pth")) == 0
    assert Extract.main(coco.arguments(tmp_path / "b.pth", "--amp", dtype)) == 0
    full, half = (read_features(tmp_path / name) for name in ("a.pth", "b.pth"))
    column = half.image_features["dino_features"]
    assert column.dtype == torch.float32
    assert 0 < (column - full.image_features["dino_features"]).norm() / column.norm() < 2e-2
    assert half.settings["vision"]["amp"] == dtype
    assert Extract.main(coco.arguments(tmp_path / "c.pth", "--amp")) == 0
    assert read_features(tmp_path / "c.pth").settings["vision"]["amp"] is True


def test_a_compiled_backbone_gives_the_same_features_and_is_recorded(tmp_path, coco, monkeypatch):
    compiled = []
    compiler = lambda program, inputs: compiled.append(program) or program.forward  # noqa: E731
    monkeypatch.setattr("talk2dino.devices.COMPILER", compiler)
    monkeypatch.setattr("talk2dino.devices.shutil.which", lambda name: name)
    assert Extract.main(coco.arguments(tmp_path / "a.pth")) == 0 and not compiled
    assert Extract.main(coco.arguments(tmp_path / "b.pth", "--compile")) == 0 and compiled
    plain, made = (read_features(tmp_path / name) for name in ("a.pth", "b.pth"))
    torch.testing.assert_close(made.image_features, plain.image_features)
    assert made.settings["vision"] == {**plain.settings["vision"], "compile": True}


def test_without_a_compiler_compile_is_refused_before_anything(tmp_path, coco, monkeypatch, capsys):
    monkeypatch.setattr("talk2dino.devices.shutil.which", lambda name: None)
    assert Extract.main(coco.arguments(tmp_path / "a.pth", "--compile")) == 2
    assert "--compile on cpu needs a C++ compiler (g++)" in capsys.readouterr().err
    assert folder_names(tmp_path) == []


def test_the_normalisation_of_a_backbone_is_recorded_where_it_is_not_imagenets(
    tmp_path, coco, caplog
):
    model = ["--model", "vit_tiny_patch16_224", "--resize_dim", "32", "--crop_dim", "32"]
    flags = [*model, "--vision_weights", "seeded:0"]
    assert Extract.main(coco.arguments(tmp_path / "a.pth", *flags)) == 0
    made = read_features(tmp_path / "a.pth", mmap=False)
    assert made.settings["vision"]["mean"] == made.settings["vision"]["std"] == [0.5] * 3
    # As an earlier version wrote it, which normalised with ImageNet's.
    del made.settings["vision"]["mean"], made.settings["vision"]["std"]
    write_features(made, tmp_path / "old.pth")
    more = ["--ann_path", str(tmp_path / "old.pth"), "--data_dir", str(coco.folder)]
    more += ["--out_path", str(tmp_path / "b.pth"), "--extract_patch_tokens", *flags]
    assert Extract.main(more) == 0
    assert "dino_features of the input were made with other or unknown settings" in caplog.text


def test_a_smaller_batch_after_running_out_of_memory_gives_the_same_features(
    tmp_path, coco, monkeypatch, caplog
):
    flags = ["--batch_size", "4", *ALL_KEYS]
    assert Extract.main(coco.arguments(tmp_path / "a.pth", *flags)) == 0
    sizes = []

    def features(backbone, images, *rest):
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return image_features(backbone, images, *rest)

    monkeypatch.setattr(stage, "image_features", features)
    assert Extract.main(coco.arguments(tmp_path / "b.pth", *flags)) == 0
    assert sizes == [4, 2, 1, 1, 1, 1, 1, 1]
    one, other = (read_features(tmp_path / name).image_features for name in ("a.pth", "b.pth"))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert len(caplog.records) == 2


def test_a_single_image_that_does_not_fit_ends_the_run_and_keeps_the_rest(
    tmp_path, coco, monkeypatch, capsys
):
    real, calls = image_features, []

    def features(backbone, images, *rest):
        calls.append(len(images))
        if len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(backbone, images, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "image_features", features)
        assert Extract.main(coco.arguments(tmp_path / "a.pth", "--batch_size", "2")) == 1
    assert "CUDA out of memory" in capsys.readouterr().err
    assert Extract.main(coco.arguments(tmp_path / "a.pth", "--batch_size", "2")) == 0


def test_fast_resizing_is_recorded_and_close_even_for_a_large_jpeg(tmp_path, coco):
    with Image.open(coco.folder / "000.jpg") as image:
        image.resize((500, 300)).save(coco.folder / "000.jpg")
    assert Extract.main(coco.arguments(tmp_path / "a.pth")) == 0
    assert Extract.main(coco.arguments(tmp_path / "b.pth", "--resize", "fast")) == 0
    exact, fast = (read_features(tmp_path / name) for name in ("a.pth", "b.pth"))
    assert fast.settings["vision"] == {**exact.settings["vision"], "resize": "fast"}
    one, other = (made.image_features["dino_features"] for made in (exact, fast))
    assert 0 < (one - other).norm() / one.norm() < 0.02


def test_the_published_layout_is_written_on_request(tmp_path, coco):
    assert Extract.main(coco.arguments(tmp_path / "out.pth", "--layout", "coco")) == 0
    stored = torch.load(tmp_path / "out.pth", weights_only=True)
    assert stored["images"][0]["dino_features"].shape == (192,)


# What goes wrong with images.


def break_image(path, kind):
    whole = path.read_bytes()
    if kind == "missing":
        path.unlink()
    else:
        content = {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"not an image"}
        path.write_bytes(content[kind])


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "text"])
def test_a_bad_image_is_named_and_left_out_and_the_rest_is_written(tmp_path, coco, capsys, kind):
    break_image(coco.folder / "002.jpg", kind)
    assert Extract.main(coco.arguments(tmp_path / "out.pth", "--batch_size", "2")) == 1
    stored = read_features(tmp_path / "out.pth")
    assert [image["id"] for image in stored.images] == [100, 101, 103, 104, 105]
    assert {a["image_id"] for a in stored.annotations} == {100, 101, 103, 104, 105}
    assert stored.image_features["dino_features"].shape == (5, 192)
    errors = capsys.readouterr().err
    assert "1 images failed and were left out" in errors
    assert "image 102 (002.jpg): " in errors
    assert "1 failures are more than --max_failures 0" in errors
    assert "image 102" in (tmp_path / "out.pth.failed.txt").read_text()
    assert folder_names(tmp_path) == ["out.pth", "out.pth.failed.txt"]


def test_the_other_images_keep_their_features_when_one_fails(tmp_path, coco):
    assert Extract.main(coco.arguments(tmp_path / "a.pth")) == 0
    break_image(coco.folder / "000.jpg", "truncated")
    assert Extract.main(coco.arguments(tmp_path / "b.pth")) == 1
    whole = read_features(tmp_path / "a.pth").image_features["dino_features"]
    rest = read_features(tmp_path / "b.pth").image_features["dino_features"]
    torch.testing.assert_close(rest, whole[1:], rtol=1e-5, atol=1e-6)


def test_allowed_failures_end_well(tmp_path, coco):
    break_image(coco.folder / "002.jpg", "empty")
    assert Extract.main(coco.arguments(tmp_path / "out.pth", "--max_failures", "1")) == 0
    assert Extract.main(coco.arguments(tmp_path / "out.pth", "--overwrite")) == 1


def test_many_failures_are_counted_and_listed_in_a_file(tmp_path, make_coco, capsys):
    coco = make_coco(tmp_path / "coco", 16)
    for number in range(14):
        break_image(coco.folder / f"{number:03d}.jpg", "missing")
    assert Extract.main(coco.arguments(tmp_path / "out.pth", "--batch_size", "4")) == 1
    assert "... and 4 more" in capsys.readouterr().err
    assert len((tmp_path / "out.pth.failed.txt").read_text().splitlines()) == 14


def test_without_any_image_the_folder_is_named_before_weights_are_loaded(tmp_path, coco, capsys):
    arguments = coco.arguments(tmp_path / "out.pth", "--data_dir", str(tmp_path / "nowhere"))
    arguments += ["--model", "dinov2_vitb14_reg", "--crop_dim", "56"]  # not downloadable here
    assert Extract.main(arguments) == 1
    errors = capsys.readouterr().err
    assert "6 of 6 images are missing" in errors
    assert str(tmp_path / "nowhere" / "000.jpg") in errors
    assert folder_names(tmp_path) == []


def test_images_that_exist_but_all_fail_write_nothing(tmp_path, coco, capsys):
    for image in coco.images:
        break_image(coco.folder / image["file_name"], "text")
    assert Extract.main(coco.arguments(tmp_path / "out.pth")) == 1
    assert "none of the 6 images could be read" in capsys.readouterr().err
    assert folder_names(tmp_path) == []


def test_an_image_too_long_to_resize_is_a_named_failure(tmp_path, coco, capsys):
    Image.new("L", (1, 60_000)).save(coco.folder / "001.png")
    coco.images[1]["file_name"] = "001.png"
    coco.save()
    assert Extract.main(coco.arguments(tmp_path / "out.pth")) == 1
    assert "its sides are 1 x 60000 pixels" in capsys.readouterr().err


# Wrong arguments: exit code 2 and nothing made.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "dinov2_vitb"], "Did you mean 'dinov2_vitb14'"),
        (["--vision_weights", "nowhere.pth"], "nowhere.pth"),
        (["--crop_dim", "112"], "--crop_dim 112 is larger than --resize_dim 56"),
        (["--resize", "fats"], "unknown resize 'fats'. Known: exact, fast"),
        (["--batch_size", "0"], "batch_size must be at least 1"),
        (["--workers", "-1"], "workers must be at least 0"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--dtype", "float64"], "invalid choice: 'float64'"),
        (["--extract_all"], "unrecognized arguments: --extract_all"),
        (["--extract_avg"], "unrecognized arguments: --extract_avg"),
        (["--n_in_splits", "0"], "must be at least 1"),
        (["--write_as_wds", "--n_shards", "0"], "--n_shards must be at least 1"),
        (["--write_as_wds", "--layout", "coco"], "--layout is for .pth files"),
        (["--ann_path", "nothing.json"], "nothing.json: no such file or folder"),
        (["--ann_path", "nothing{0..3}.tar"], "no such tar: nothing0.tar"),
        (["--out_path", "."], "be no folder"),
        (["--out_path", "features.npz"], "must end in .pth"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, coco, capsys, arguments, message):
    assert Extract.main(coco.arguments(tmp_path / "out.pth", *arguments)) == 2
    assert message in capsys.readouterr().err
    assert folder_names(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_refused_where_there_is_none(tmp_path, coco, capsys):
    assert Extract.main(coco.arguments(tmp_path / "out.pth", "--device", "cuda")) == 2
    assert "PyTorch sees no cuda device" in capsys.readouterr().err


def test_an_output_below_a_file_is_refused(tmp_path, coco, capsys):
    (tmp_path / "file").touch()
    assert Extract.main(coco.arguments(tmp_path / "file" / "out.pth")) == 2
    assert "is a file, so the folder" in capsys.readouterr().err


def test_an_existing_output_is_kept(tmp_path, coco, capsys):
    (tmp_path / "out.pth").write_bytes(b"precious")
    assert Extract.main(coco.arguments(tmp_path / "out.pth")) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert (tmp_path / "out.pth").read_bytes() == b"precious"


def test_an_annotation_file_that_is_no_json_is_refused(tmp_path, coco, capsys):
    coco.path.write_text("not json")
    assert Extract.main(coco.arguments(tmp_path / "out.pth")) == 1
    assert "is not JSON" in capsys.readouterr().err
    assert folder_names(tmp_path) == []


def test_a_crop_that_does_not_fit_the_patches_is_refused(tmp_path, coco, capsys):
    assert Extract.main(coco.arguments(tmp_path / "out.pth", "--crop_dim", "50")) == 2
    assert "14-pixel patches of toy. Use 56" in capsys.readouterr().err
    assert folder_names(tmp_path) == []


def test_the_flags_are_as_published():
    published = (
        "--ann_path a --batch_size 8 --data_dir d --model m --resize_dim 1 --crop_dim 1 "
        "--extract_cls --extract_avg_self_attn --extract_second_last_out --extract_patch_tokens "
        "--extract_self_attn_maps --extract_disentangled_self_attn --out_path o --write_as_wds "
        "--n_shards 3 --n_in_split 2 --in_batch_offset 1 --out_offset 1 --blip_model b"
    )
    args = Extract.parse(published.split())
    assert args.n_in_splits == 2
    defaults = Extract.parse(["--ann_path", "a"])
    assert (defaults.model, defaults.resize_dim, defaults.crop_dim) == (
        "dinov2_vitl14_reg",
        518,
        518,
    )
    assert (defaults.batch_size, defaults.n_shards, str(defaults.data_dir)) == (64, 25, "../coco")


# Inputs and outputs of other kinds.


def test_a_feature_file_keeps_its_captions_features(tmp_path, coco):
    text = {"ann_feats": torch.randn(len(coco.annotations), 4)}
    write_features(FeatureFile(coco.images, coco.annotations, {}, text), tmp_path / "in.pth")
    arguments = coco.arguments(tmp_path / "out.pth", "--ann_path", str(tmp_path / "in.pth"))
    assert Extract.main(arguments) == 0
    stored = read_features(tmp_path / "out.pth")
    torch.testing.assert_close(stored.caption_features, text)
    assert stored.image_features["dino_features"].shape == (6, 192)


def test_image_features_are_added_to_those_made_the_same_way(tmp_path, coco):
    path = tmp_path / "a.pth"
    assert Extract.main(coco.arguments(path)) == 0
    again = ["--ann_path", str(path), "--extract_avg_self_attn", "--overwrite"]
    assert Extract.main(coco.arguments(path, *again)) == 0
    assert sorted(read_features(path).image_features) == ["avg_self_attn_out", "dino_features"]


def test_image_features_made_in_another_way_are_dropped_with_a_warning(tmp_path, coco, caplog):
    path = tmp_path / "a.pth"
    assert Extract.main(coco.arguments(path)) == 0
    again = ["--ann_path", str(path), "--extract_avg_self_attn", "--overwrite"]
    assert Extract.main(coco.arguments(path, *again, "--crop_dim", "42")) == 0
    assert list(read_features(path).image_features) == ["avg_self_attn_out"]
    assert "dino_features of the input were made with other or unknown settings" in caplog.text


def test_a_file_is_not_replaced_by_one_that_lacks_images(tmp_path, coco, capsys):
    path = tmp_path / "a.pth"
    assert Extract.main(coco.arguments(path)) == 0
    before = path.read_bytes()
    break_image(coco.folder / "003.jpg", "missing")
    again = ["--ann_path", str(path), "--extract_avg_self_attn", "--overwrite"]
    assert Extract.main(coco.arguments(path, *again)) == 1
    assert "would lose them. It is left as it was" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert Extract.main(coco.arguments(path, *again, "--max_failures", "1")) == 0
    assert read_features(path).num_images == 5


def test_shards_hold_every_pair(tmp_path, coco):
    out = tmp_path / "shards"
    assert Extract.main(coco.arguments(out, "--write_as_wds", "--n_shards", "3")) == 0
    names = []
    for path in sorted(out.iterdir()):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert sorted(names) == sorted(f"{a['id']}.pth" for a in coco.annotations)
    assert folder_names(out) == [f"shard0000{n}.tar" for n in range(3)]


def test_images_that_shards_cannot_hold_are_not_reported_as_written(tmp_path, coco, capsys):
    content = json.loads(coco.path.read_text())
    first = content["images"][0]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != first]
    coco.path.write_text(json.dumps(content))
    out = tmp_path / "shards"
    assert Extract.main(coco.arguments(out, "--write_as_wds", "--n_shards", "1")) == 0
    said = capsys.readouterr().out
    assert f"{len(content['images']) - 1} images, {len(content['annotations'])} captions" in said
    assert "1 images without captions have no place in shards" in said


def test_splits_together_are_the_whole(tmp_path, coco):
    assert (
        Extract.main(coco.arguments(tmp_path / "a.pth", "--n_in_splits", "3", "--batch_size", "1"))
        == 0
    )
    assert Extract.main(coco.arguments(tmp_path / "whole.pth", "--batch_size", "1")) == 0
    whole = read_features(tmp_path / "whole.pth")
    parts = [read_features(tmp_path / f"a_{number}.pth") for number in range(3)]
    columns = [part.image_features["dino_features"] for part in parts]
    assert torch.equal(torch.cat(columns), whole.image_features["dino_features"])
    assert [a for part in parts for a in part.annotations] == whole.annotations


def test_a_later_split_can_be_made_alone(tmp_path, coco):
    arguments = ["--n_in_split", "3", "--in_batch_offset", "2", "--out_offset", "5"]
    assert Extract.main(coco.arguments(tmp_path / "a.pth", *arguments)) == 0
    assert folder_names(tmp_path) == ["a_7.pth"]
    assert [image["id"] for image in read_features(tmp_path / "a_7.pth").images] == [104, 105]


def test_jobs_write_the_files_of_the_splits_and_lists_of_their_own_failures(tmp_path, coco):
    break_image(coco.folder / "002.jpg", "empty")
    assert Extract.main(coco.arguments(tmp_path / "a.pth", "--n_in_splits", "2")) == 1
    for job, code in (("0", 1), ("1", 0)):
        flags = ["--num_jobs", "2", "--job_id", job]
        assert Extract.main(coco.arguments(tmp_path / "b.pth", *flags)) == code
    assert "image 102" in (tmp_path / "b_0.pth.failed.txt").read_text()
    assert not list(tmp_path.glob("b_1.pth.failed.txt"))
    for number in range(2):
        one, other = (tmp_path / f"{stem}_{number}.pth" for stem in "ab")
        assert one.read_bytes() == other.read_bytes()


def test_finished_splits_of_one_input_are_not_completed_with_another(
    tmp_path, coco, make_coco, capsys, monkeypatch
):
    """The splits that are written are not looked at again, so the input has to be the same."""
    make = Job.make

    def make_and_die(*arguments):
        make(*arguments)
        raise KeyboardInterrupt

    arguments = (tmp_path / "s.pth", "--n_in_splits", "2")
    with monkeypatch.context() as patch:
        patch.setattr(Job, "make", make_and_die)
        assert Extract.main(coco.arguments(*arguments)) == 130
    assert Extract.main(make_coco(tmp_path / "other", 6).arguments(*arguments)) == 2
    assert "unfinished work with other settings (ann_path was " in capsys.readouterr().err
    assert Extract.main(coco.arguments(*arguments)) == 0


def test_web_tars_become_features_and_failures(tmp_path, coco, capsys):
    (tmp_path / "cc3m").mkdir()
    with tarfile.open(tmp_path / "cc3m" / "00000.tar", "w") as tar:
        for number, data in enumerate([(coco.folder / "000.jpg").read_bytes(), b"broken"]):
            described = json.dumps({"key": f"{number:09d}", "caption": f"no {number}", "url": "u"})
            for suffix, content in (("jpg", data), ("json", described.encode())):
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    arguments = coco.arguments(tmp_path / "cc3m.pth", "--ann_path", str(tmp_path / "cc3m"))
    assert Extract.main(arguments) == 1
    stored = read_features(tmp_path / "cc3m.pth")
    assert stored.annotations == [{"id": 0, "image_id": 0, "caption": "no 0"}]
    assert stored.images[0]["url"] == "u"
    assert "image 1 (00000.tar/000000001.jpg)" in capsys.readouterr().err


def test_asking_for_a_key_twice_gives_equal_tensors():
    backbone = load_vision("toy")
    images = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    one = image_features(backbone, images, ["disentangled_self_attn"])
    two = image_features(backbone, images, IMAGE_KEYS)
    torch.testing.assert_close(
        one["disentangled_self_attn"], two["disentangled_self_attn"], rtol=0, atol=0
    )
    assert all(column.dtype == torch.float32 for column in two.values())


def test_a_process_that_reads_images_and_dies_is_one_sentence(coco, tmp_path, monkeypatch, capsys):
    def die(source, least):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ImageSource, "read", die)
    forking = partial(DataLoader, multiprocessing_context="fork")  # which takes the patch along
    monkeypatch.setattr(stage, "DataLoader", forking)
    assert Extract.main(coco.arguments(tmp_path / "x.pth", "--workers", "1")) == 1
    assert "a process that reads images has ended (DataLoader worker" in capsys.readouterr().err
