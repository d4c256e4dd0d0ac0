"""What is to be extracted: COCO files, feature files, web tars, feature shards, and rubbish."""

import gzip
import io
import json
import tarfile

import pytest
import torch

from talk2dino.features.captions import CaptionInput, read_coco
from talk2dino.features.store import FeatureFile, write_features
from talk2dino.features.tars import list_tars, read_web_samples


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def web_sample(key, **changes):
    described = {"key": key, "caption": f"caption {key}", "url": f"http://x/{key}.jpg"}
    described |= {"height": 10, "width": 20, "status": "success", **changes}
    return {f"{key}.jpg": b"jpg " + key.encode(), f"{key}.json": json.dumps(described).encode()}


def test_a_coco_file_keeps_its_other_entries(coco):
    features = read_coco(coco.path)
    assert features.images == coco.images
    assert features.annotations == coco.annotations
    assert features.extra == {"info": {"year": 2014}, "licenses": []}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_mark_and_packing_do_not_matter(coco, encoding, pack):
    data = pack(coco.path.read_text().encode(encoding))
    for name in ("marked.json", "marked.json.gz"):
        (coco.folder / name).write_bytes(data)
        found = CaptionInput(coco.folder / name, coco.folder).split(0, 1)
        assert found.features.annotations == coco.annotations


def test_a_collection_knows_where_every_image_is(coco):
    collection = CaptionInput(coco.path, coco.folder).split(0, 1)
    assert [source.exists() for source in collection.sources] == [True] * 6
    assert CaptionInput(coco.path, need_images=False).split(0, 1).sources == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is empty \(0 bytes\)"),
        (" \n", "is empty"),
        ("{'images': 3}", "is not JSON"),
        ("[1, 2]", "holds a list"),
        ('{"images": [{"id": 1}], "info": 3}', r"no list 'annotations' \(found: images, info\)"),
        ('{"annotations": []}', "no list 'images'"),
        ('{"images": [], "annotations": [{}]}', "lists no images"),
        ('{"images": [{"id": 1}], "annotations": []}', "lists no annotations"),
        ('{"images": [7], "annotations": [{}]}', "image 0 is not a record but 7"),
        ('{"images": [{"file_name": "a"}], "annotations": [{}]}', "image 0 has no 'id'"),
        ('{"images": [{"id": [1]}], "annotations": [{}]}', r"image 0 has the 'id' \[1\], not a"),
        ('{"images": [{"id": 1}], "annotations": [{"id": 4, "image_id": {}}]}',
         "annotation 0 has the 'image_id' {}, not a number or text"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 4, "image_id": 1}]}',
         "annotation 4 has no 'caption'. Is this a captions file?"),
        ('{"images": [{"id": 1, "file_name": "a"}], '
         '"annotations": [{"id": 4, "image_id": 1, "caption": 5}]}',
         "caption of annotation 4 is 5, not text"),
        ('{"images": [{"id": 1, "file_name": "a"}], '
         '"annotations": [{"id": 4, "image_id": 1, "caption": ""}, '
         '{"id": 4, "image_id": 1, "caption": ""}]}',
         "annotation ids that occur more than once: 4"),
        ('{"images": [{"id": 1}], "annotations": [{"id": 4, "image_id": 1, "caption": ""}]}',
         "image 1 has neither a 'file_name'"),
        ('{"images": [], "annotations": [{"id": 1}], "annotations": []}',
         "captions.json: 'annotations' is given twice"),
        ('{"images": [{"id": 1, "file_name": "a", "id": 2}]}', "'id' is given twice"),
        ('{"images": ' + "[" * 100_000, "captions.json is nested too deeply"),
        ('{"images": [{"id": true}], "annotations": [{}]}', "image 0 has the 'id' True, not a"),
        ('{"images": [{"id": NaN}], "annotations": [{}]}', "image 0 has the 'id' nan, not a"),
        ('{"images": [{"id": 7, "file_name": "a"}], '
         '"annotations": [{"id": 4, "image_id": "7", "caption": ""}]}',
         "Some ids are text and others numbers: an image has the id 7, an annotation the image_id "
         "'7'"),
    ],
)  # fmt: skip
def test_what_is_no_captions_file_is_refused(tmp_path, text, message):
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        CaptionInput(path).split(0, 1)


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "photo.json").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"photo\.json is not JSON"):
        CaptionInput(tmp_path / "photo.json").split(0, 1)


def test_nothing_at_the_path_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        CaptionInput(tmp_path / "captions.json")


def test_captions_of_unlisted_images_are_named_and_counted(coco):
    lost = [{"id": 1000 + n, "image_id": 7 + n, "caption": ""} for n in range(5)]
    coco.save(annotations=coco.annotations + lost)
    with pytest.raises(
        ValueError, match=r"5 of 16 annotations.*image_id 7, 8, 9, ... \(5 in all\)"
    ):
        CaptionInput(coco.path).split(0, 1)


def test_images_without_captions_are_kept_and_counted(coco, caplog):
    coco.save(annotations=coco.annotations[:4])
    collection = CaptionInput(coco.path, coco.folder).split(0, 1)
    assert len(collection.sources) == 6
    assert "4 of 6 images have no caption" in caplog.text


def test_splits_are_contiguous_and_complete(coco):
    data = CaptionInput(coco.path, coco.folder)
    splits = [data.split(number, 4) for number in range(4)]
    assert [image["id"] for s in splits for image in s.features.images] == list(range(100, 106))
    captions = [a["caption"] for s in splits for a in s.features.annotations]
    assert captions == [a["caption"] for a in coco.annotations]
    assert [len(s.sources) for s in splits] == [1, 2, 1, 2]


def test_more_splits_than_images_are_refused(coco):
    with pytest.raises(ValueError, match="--n_in_splits 7 is more than the 6 images"):
        CaptionInput(coco.path).split(0, 7)


@pytest.mark.parametrize("layout", ["columnar", "coco"])
def test_a_feature_file_is_an_input_whatever_its_name(tmp_path, coco, layout):
    features = FeatureFile(
        coco.images, coco.annotations, {}, {"ann_feats": torch.randn(len(coco.annotations), 3)}
    )
    write_features(features, tmp_path / "features.bin", layout)
    found = CaptionInput(tmp_path / "features.bin", coco.folder).split(0, 1)
    assert found.sources[0].exists()
    torch.testing.assert_close(found.features.caption_features, features.caption_features)


def test_web_tars_keep_key_caption_and_url(tmp_path):
    write_tar(tmp_path / "00000.tar", {**web_sample("000000007"), **web_sample("000000009")})
    write_tar(tmp_path / "00001.tar", web_sample("000010001"))
    collection = CaptionInput(tmp_path).split(0, 1)
    images, annotations = collection.features.images, collection.features.annotations
    assert [image["id"] for image in images] == [0, 1, 1_000_000]
    assert images[1] == {
        "file_name": "00000.tar/000000009.jpg",
        "key": "000000009",
        "url": "http://x/000000009.jpg",
        "height": 10,
        "width": 20,
        "id": 1,
    }
    assert annotations[2] == {"id": 1000000, "image_id": 1000000, "caption": "caption 000010001"}
    assert collection.sources[1]._read_member(*collection.sources[1].member) == b"jpg 000000009"


def test_ids_of_web_samples_do_not_depend_on_the_splits(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"{number:05d}.tar", web_sample(f"{number}a") | web_sample("b"))
    data = CaptionInput(tmp_path)
    whole = [image["id"] for image in data.split(0, 1).features.images]
    parts = [image["id"] for n in range(3) for image in data.split(n, 3).features.images]
    assert parts == whole


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"a.json": b"{}"}, "has no image"),
        ({"a.jpg": b"j"}, "has no json"),
        ({"a.jpg": b"j", "a.json": b"{"}, "has no json with a 'caption'"),
        ({"a.jpg": b"j", "a.json": b"[]"}, "has no json with a 'caption'"),
        ({"a.jpg": b"j", "a.json": b'{"caption": null}'}, "has the caption None"),
    ],
)
def test_a_sample_that_lacks_something_becomes_a_named_failure(tmp_path, sample, message):
    write_tar(tmp_path / "0.tar", {**sample, **web_sample("b")})
    _, annotations, sources = read_web_samples([(0, tmp_path / "0.tar")])
    assert message in sources[0].problem
    assert "sample a of" in sources[0].problem
    assert sources[1].problem is None
    assert [a["image_id"] for a in annotations] == [1]


def test_tars_are_listed_by_folder_range_and_glob(tmp_path):
    for number in range(3):
        (tmp_path / f"shard{number:05d}.tar").touch()
    everything = sorted(tmp_path.iterdir())
    assert list_tars(tmp_path) == everything
    assert list_tars(tmp_path / "shard{00000..00002}.tar") == everything
    assert list_tars(tmp_path / "shard{00001..00001}.tar") == everything[1:2]
    assert list_tars(tmp_path / "*.tar") == everything
    assert list_tars(everything[0]) == everything[:1]


def test_missing_tars_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no .tar files"):
        list_tars(tmp_path)
    (tmp_path / "shard00000.tar").touch()
    with pytest.raises(FileNotFoundError, match=r"no such tar: .*shard00001\.tar"):
        list_tars(tmp_path / "shard{00000..00001}.tar")
    with pytest.raises(FileNotFoundError, match=r"no such tar: .*other\*\.tar"):
        list_tars(tmp_path / "other*.tar")


def test_empty_tars_are_refused(tmp_path):
    write_tar(tmp_path / "0.tar", {})
    with pytest.raises(ValueError, match="hold no samples"):
        CaptionInput(tmp_path).split(0, 1)
