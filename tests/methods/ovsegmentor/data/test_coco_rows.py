"""Training samples from COCO captions, and entities of one's own."""

import gzip
import json

import numpy as np
import pytest

from talk2dino.methods.ovsegmentor.data.samples import open_rows
from talk2dino.methods.ovsegmentor.data.words import CaptionReader, dictionary_lemma, own_entities

from .conftest import save_image

table = own_entities(["heart", "snow", "Lemon"])
reader = CaptionReader(dictionary_lemma, table=table)
CAPTIONS = ["Two hearts.", "a heart in the snow", "a dog", "", "lemons"]


@pytest.fixture
def coco(tmp_path):
    images = [{"id": 10 * n, "file_name": f"{n}.png"} for n in range(3)]
    annotations = [
        {"id": n, "image_id": 10 * (n % 3), "caption": text} for n, text in enumerate(CAPTIONS)
    ]
    for n in range(3):
        save_image(tmp_path / "images" / f"{n}.png", n)
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_own_entities_replace_the_published_ones():
    assert reader.look_at("Hearts, a dog and a LEMON") == (None, ["heart", "Lemon"])
    assert reader.read("a lemon's heart")[1] == ("Lemon", "heart")
    assert reader.read("a lemon's heart")[0] == "a [MASK]'s [MASK]"
    assert CaptionReader(dictionary_lemma).look_at("Hearts, a dog") == (None, ["dog"])


@pytest.mark.parametrize(("words", "named"), [([], "nothing"), (["a b"], "a b"), (["x", ""], "''")])
def test_entities_are_single_words(words, named):
    with pytest.raises(ValueError, match=f"entities must be single words, got .*{named}"):
        own_entities(words)


def test_every_caption_with_an_entity_is_a_row(coco):
    rows = open_rows(coco, coco.parent / "images", reader)
    assert rows.usable.tolist() == [0, 1, 4]
    assert rows.left_out.reasons == {"without an entity": 1, "empty": 1}
    assert (rows.caption(4), rows.image(4)[0]) == ("lemons", "1.png")
    assert rows.image(0)[1].read().size == rows.image(4)[1].read().size


def test_partners_share_an_entity(coco):
    rows = open_rows(coco, coco.parent / "images", reader, pairs=True)
    random = np.random.default_rng(0)
    partners = [rows.partner(1, random) for _ in range(40)]
    assert set(partners) == {(0, "heart"), (1, "heart"), (1, "snow")}
    assert rows.partner(4, random)[0] == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is no COCO captions file: it holds a list"),
        ("{", "is not JSON"),
        ('{"images": [{"id": 1}]}', "it has no list 'annotations'"),
        ('{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "x"}]}', "neither"),
        ('{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": null}]}',
         "the caption of annotation 0 is None, not text"),
        ('{"images": [{"id": 1, "file_name": null}], '
         '"annotations": [{"image_id": 1, "caption": "x"}]}', "neither a 'file_name' nor"),
        ('{"images": [{"id": "0"}], "annotations": [{"image_id": 0, "caption": "x"}]}',
         "Some ids are text and others numbers: an image has the id '0'"),
        ('{"images": [{"id": 0, "file_name": "HTTP://x/a.jpg"}], '
         '"annotations": [{"image_id": 0, "caption": "x"}]}', "is an address, not a file"),
        ('{"images": [], "images": []}', "'images' is given twice"),
    ],
)  # fmt: skip
def test_what_is_no_coco_captions_is_refused(coco, content, message):
    coco.write_text(content)
    with pytest.raises(ValueError, match=rf"captions.json.*{message}|{message}"):
        open_rows(coco, coco.parent / "images", reader)


def test_absent_captions_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json: no such file"):
        open_rows(tmp_path / "none.json", tmp_path, reader)


def test_under_compat_captions_without_an_entity_stay_but_have_no_partner(coco):
    published = CaptionReader(dictionary_lemma, compat=True)
    rows = open_rows(coco, coco.parent / "images", published)
    assert rows.usable.tolist() == [0, 1, 2, 4]
    rows = open_rows(coco, coco.parent / "images", published, pairs=True)
    assert rows.usable.tolist() == [2]
    assert rows.left_out.reasons["without an entity"] == 3


def test_ids_that_are_text_on_one_side_and_numbers_on_the_other_are_named(coco):
    content = json.loads(coco.read_text())
    for image in content["images"]:
        image["id"] = str(image["id"])
    coco.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"Some ids are text and others numbers"):
        open_rows(coco, coco.parent / "images", reader)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["captions.json", "captions.JSON.gz"])
def test_a_mark_and_packing_do_not_matter(coco, encoding, name):
    data = coco.read_text().encode(encoding)
    path = coco.with_name(name)
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    assert open_rows(path, coco.parent / "images", reader).usable.tolist() == [0, 1, 4]


@pytest.mark.parametrize(
    ("record", "folder"),
    [
        ({"file_name": "COCO_val2014_01.png"}, "val2014"),
        ({"file_name": "01.png", "coco_url": "http://images.cocodataset.org/train2017/01.png"},
         "train2017"),
        ({"coco_url": "http://images.cocodataset.org/train2017/01.png"}, "train2017"),
        ({"file_name": "val2014/01.png"}, "."),
    ],
)  # fmt: skip
def test_images_may_lie_in_the_folders_of_coco(tmp_path, record, folder):
    name = record.get("file_name") or "01.png"
    save_image(tmp_path / folder / name, 0)
    path = tmp_path / "captions.json"
    annotations = [{"image_id": 1, "caption": "a heart"}]
    path.write_text(json.dumps({"images": [{"id": 1, **record}], "annotations": annotations}))
    assert open_rows(path, tmp_path, reader).image(0)[1].read().size == (30, 40)
    if "coco_url" not in record:  # a table has the names only
        table = tmp_path / "table.csv"
        table.write_text(f"image_id,caption\n{name},a heart\n")
        assert open_rows(table, tmp_path, reader).image(0)[1].read().size == (30, 40)


def test_annotations_have_ids_or_none_has(coco):
    content = json.loads(coco.read_text())
    for annotation in content["annotations"]:
        del annotation["id"]
    coco.write_text(json.dumps(content))
    assert len(open_rows(coco, coco.parent / "images", reader).usable) == 3
    for ids, message in (((1,), "has no 'id'"), ((1, 1, 2, 3, 4), "more than once: 1")):
        for annotation, number in zip(content["annotations"], ids, strict=False):
            annotation["id"] = number
        coco.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            open_rows(coco, coco.parent / "images", reader)
