"""The feature file: both layouts, what it refuses, and what opening it costs."""

import json
import os
import pickle
import zipfile

import pytest
import torch

from talk2dino.features.store import FeatureFile, read_features, write_features


def small(**changes):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "a café"},
            {"id": 2, "image_id": 7, "caption": "two"},
            {"id": 3, "image_id": 9, "caption": "three"},
        ],
        "image_features": {"dino_features": torch.arange(8.0).view(2, 4)},
        "caption_features": {
            "text_argmax": torch.tensor([4, 5, 6]),
            "ann_feats": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
        },
        "settings": {"vision": {"model": "toy", "resize_dim": 56, "crop_dim": 56}},
    }
    features = FeatureFile(**{**content, **changes})
    features.extra = {"info": {"year": 2014}}
    return features


def published(tmp_path, images=None, annotations=None):
    stored = {
        "info": {"year": 2014},
        "images": images
        or [{"id": 7, "dino_features": torch.ones(4)}, {"id": 9, "dino_features": torch.zeros(4)}],
        "annotations": annotations
        or [{"id": 1, "image_id": 9, "caption": "one", "ann_feats": torch.ones(5)}],
    }
    path = tmp_path / "published.pth"
    torch.save(stored, path)
    return path


@pytest.mark.parametrize("layout", ["columnar", "coco"])
def test_a_file_comes_back_as_it_was_written(tmp_path, layout):
    write_features(small(), tmp_path / "a.pth", layout)
    back = read_features(tmp_path / "a.pth")
    assert back.images == small().images
    assert back.annotations == small().annotations
    assert back.extra == {"info": {"year": 2014}}
    assert back.settings == small().settings
    assert back.layout == layout
    assert back.caption_rows.tolist() == [1, 0, 1]
    torch.testing.assert_close(back.image_features, small().image_features)
    torch.testing.assert_close(back.caption_features, small().caption_features)


@pytest.mark.parametrize("layout", ["columnar", "coco"])
def test_equal_contents_give_equal_bytes_under_any_name(tmp_path, layout):
    swapped = dict(reversed(small().caption_features.items()))
    write_features(small(), tmp_path / "a.pth", layout)
    write_features(small(caption_features=swapped), tmp_path / "longer name.pth", layout)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "longer name.pth").read_bytes()


def test_the_published_layout_is_what_the_published_code_reads(tmp_path):
    write_features(small(), tmp_path / "a.pth", "coco")
    stored = torch.load(tmp_path / "a.pth", weights_only=True)
    assert stored["images"][1]["file_name"] == "b.jpg"
    torch.testing.assert_close(stored["images"][1]["dino_features"], torch.arange(4.0, 8))
    assert stored["annotations"][2]["caption"] == "three"
    assert stored["annotations"][2]["ann_feats"].shape == (5,)
    assert stored["info"] == {"year": 2014}


def test_every_row_of_the_published_layout_is_stored_once(tmp_path):
    columns = {"patch_tokens": torch.randn(2, 1000, 10)}
    write_features(small(image_features=columns), tmp_path / "a.pth", "coco")
    assert os.path.getsize(tmp_path / "a.pth") < 1.1 * columns["patch_tokens"].numel() * 4


def test_a_column_that_is_a_slice_does_not_drag_its_storage_along(tmp_path):
    columns = {"dino_features": torch.randn(10_000, 4)[:2]}
    write_features(small(image_features=columns), tmp_path / "a.pth")
    assert os.path.getsize(tmp_path / "a.pth") < 20_000


def test_opening_does_not_parse_the_records(tmp_path):
    write_features(small(), tmp_path / "a.pth")
    features = read_features(tmp_path / "a.pth")
    features._images = features._annotations = None  # would raise if touched
    assert features.num_images == 2
    assert features.caption_rows.tolist() == [1, 0, 1]
    assert features.image_features["dino_features"].shape == (2, 4)


def test_images_the_published_code_skipped_are_left_out_with_their_captions(tmp_path, caplog):
    path = published(
        tmp_path,
        images=[{"id": 7, "file_name": "bad.jpg"}, {"id": 9, "dino_features": torch.ones(4)}],
        annotations=[{"id": 1, "image_id": 7}, {"id": 2, "image_id": 9}],
    )
    features = read_features(path)
    assert [image["id"] for image in features.images] == [9]
    assert [annotation["id"] for annotation in features.annotations] == [2]
    assert "1 images carry no features" in caplog.text


def test_selecting_images_takes_their_captions_and_rows_along():
    part = small().select(torch.tensor([1]))
    assert [annotation["id"] for annotation in part.annotations] == [1, 3]
    assert part.caption_rows.tolist() == [0, 0]
    assert part.caption_features["text_argmax"].tolist() == [4, 6]
    assert part.image_features["dino_features"].tolist() == [[4, 5, 6, 7]]


def test_selecting_everything_copies_nothing():
    features = small()
    assert features.select(torch.arange(2)) is features


def test_a_missing_key_names_the_command_that_adds_it():
    with pytest.raises(
        ValueError, match=r"python text_features_extraction.py --ann_path x/val.pth"
    ):
        small(caption_features={}).require("ann_feats", "x/val.pth")
    with pytest.raises(ValueError, match=r"--ann_path v.pth --extract_dense_out"):
        small().require("clip_txt_out_tokens", "v.pth")
    command = r"dino_extraction_v2.py --ann_path v.pth --extract_disentangled_self_attn --overwrite"
    with pytest.raises(ValueError, match=f"Run, with the model and sizes .* python {command}$"):
        small().require("disentangled_self_attn", "v.pth")
    with pytest.raises(ValueError, match=r"holds no 'typo'.*Known keys: dino_features"):
        small().require("typo", "v.pth")
    assert small().require("ann_feats", "v.pth").shape == (3, 5)


def test_a_truncated_file_is_refused(tmp_path):
    write_features(small(), tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.pth is damaged"):
        read_features(tmp_path / "a.pth")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.pth").touch()
    with pytest.raises(ValueError, match="0 bytes"):
        read_features(tmp_path / "a.pth")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("was_run",)


def test_pickled_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"images": Evil(), "annotations": []}, "torch.pth")
    with open("plain.pth", "wb") as file:
        pickle.dump({"images": Evil()}, file, protocol=2)
    for name in ("torch.pth", "plain.pth"):
        with pytest.raises(ValueError, match=f"{name}.*(pickled code|not a torch file)"):
            read_features(name)
    assert not (tmp_path / "was_run").exists()


def test_a_published_file_in_the_old_torch_format_is_read(tmp_path):
    stored = {"images": [{"id": 1, "dino_features": torch.ones(2)}], "annotations": []}
    torch.save(stored, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_features(tmp_path / "old.pth").image_features["dino_features"].tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([1, 2], "holds a list"),
        ({"state_dict": torch.ones(1)}, r"no 'images' and 'annotations' \(found: state_dict\)"),
        ({"format": "other"}, "its format is 'other'"),
        ({"format": "talk2dino-features", "version": 99}, "version 99"),
        ({"format": "talk2dino-features", "version": 1}, "incomplete"),
        ({"images": [3], "annotations": []}, "image 0 is not a record"),
        ({"images": [{}], "annotations": []}, "no 'id'"),
    ],
)
def test_other_torch_files_are_refused(tmp_path, stored, message):
    torch.save(stored, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        read_features(tmp_path / "a.pth")


def test_rows_of_different_shape_are_refused(tmp_path):
    images = [{"id": 7, "dino_features": torch.ones(4)}, {"id": 9, "dino_features": torch.ones(5)}]
    with pytest.raises(ValueError, match="differ in the shape of 'dino_features'"):
        read_features(published(tmp_path, images=images))


def test_a_key_that_only_some_records_have_is_refused(tmp_path):
    images = [{"id": 7, "a": torch.ones(4)}, {"id": 9, "a": torch.ones(4), "b": torch.ones(4)}]
    with pytest.raises(ValueError, match="images without 'b' while others have it: 7"):
        read_features(published(tmp_path, images=images))
    annotations = [{"id": 1, "image_id": 7}, {"id": 2, "image_id": 7, "ann_feats": torch.ones(4)}]
    with pytest.raises(ValueError, match=r"1 of 2 annotations carry no features.*Run: python text"):
        read_features(published(tmp_path, annotations=annotations))


def test_columns_that_do_not_fit_the_records_are_refused(tmp_path):
    wrong = {"dino_features": torch.zeros(3, 4)}
    with pytest.raises(ValueError, match=r"'dino_features' has shape \(3, 4\).*2 images"):
        write_features(small(image_features=wrong), tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


def test_an_annotation_of_an_unlisted_image_is_refused(tmp_path):
    lost = [{"id": 1, "image_id": 5, "caption": ""}]
    with pytest.raises(ValueError, match=r"1 of 1 annotations name images.*image_id 5"):
        write_features(small(annotations=lost, caption_features={}), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"published.pth: 1 of 1 annotations"):
        read_features(published(tmp_path, annotations=lost))


def test_an_image_id_twice_is_refused(tmp_path):
    images = [{"id": 7, "dino_features": torch.ones(4)}] * 2
    with pytest.raises(ValueError, match="more than once: 7"):
        read_features(published(tmp_path, images=images))


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Known: columnar, coco"):
        write_features(small(), tmp_path / "a.pth", "columns")


def test_a_record_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        write_features(small(images=[{"id": 7, "x": {1}}, {"id": 9}]), tmp_path / "a.pth")


def test_the_file_holds_no_pickled_objects_beyond_tensors(tmp_path):
    write_features(small(), tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert b"caf" not in archive.read("archive/data.pkl")
    stored = torch.load(tmp_path / "a.pth", mmap=True, weights_only=True)
    assert json.loads(stored["annotations"].numpy().tobytes())[0]["caption"] == "a café"
