"""What is to be extracted: COCO files, feature files, web tars, feature shards, and rubbish."""

import gzip
import io
import json
import os
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from PIL import Image

from talk2dino.features.captions import (
    CaptionInput,
    ImageSource,
    check_exist,
    download,
    image_source,
    read_coco,
    read_web_samples,
)
from talk2dino.features.store import FeatureFile, write_features
from talk2dino.features.tars import list_tars


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
         "'annotations', by id, lists more than once: 4"),
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
    offset, size = collection.sources[1].member
    tar = (tmp_path / "00000.tar").read_bytes()
    assert tar[offset : offset + size] == b"jpg 000000009"


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


def picture(colour=(200, 10, 10)):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def server():
    """A server of scripted answers: `server.answers` is a list of (status, body)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked = self.path
            status, body = self.server.answers.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.answers = []
        server.url = f"http://127.0.0.1:{server.server_port}/a.png"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_an_image_is_read_from_the_data_folder(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    source = image_source({"id": 1, "file_name": "a.png"}, tmp_path)
    assert source.exists()
    assert source.read().getpixel((0, 0)) == (200, 10, 10)


@pytest.mark.parametrize(
    ("record", "folder"),
    [
        ({"file_name": "COCO_train2014_01.png"}, "train2014"),
        ({"file_name": "COCO_val2014_01.png"}, "val2014"),
        ({"file_name": "01.png", "coco_url": "http://images.cocodataset.org/val2017/01.png"},
         "val2017"),
        ({"coco_url": "http://images.cocodataset.org/test2014/01.png"}, "test2014"),
    ],
)  # fmt: skip
def test_the_split_and_year_folder_is_tried_second(tmp_path, record, folder):
    name = record.get("file_name", "01.png")
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).write_bytes(picture())
    assert image_source(record, tmp_path).read().size == (20, 10)
    (tmp_path / name).write_bytes(picture((1, 2, 3)))
    assert image_source(record, tmp_path).read().getpixel((0, 0)) == (1, 2, 3)


def test_a_missing_image_says_where_it_was_looked_for(tmp_path):
    source = image_source({"id": 1, "file_name": "COCO_val2014_01.png"}, tmp_path)
    assert not source.exists()
    with pytest.raises(FileNotFoundError, match=r"looked for \S*/COCO\S* and \S*/val2014/COCO"):
        source.read()


def test_a_record_without_a_file_name_is_refused():
    with pytest.raises(ValueError, match="image 5 has neither a 'file_name' nor a 'coco_url'"):
        image_source({"id": 5}, "")


@pytest.mark.parametrize("key", ["file_name", "coco_url"])
def test_a_name_that_is_no_text_is_refused(key):
    with pytest.raises(ValueError, match=f"image 5 has the '{key}' 7, not text"):
        image_source({"id": 5, key: 7}, "")


def test_when_no_image_exists_the_folder_is_named(tmp_path):
    sources = [image_source({"file_name": f"{n}.jpg"}, tmp_path) for n in range(3)]
    with pytest.raises(FileNotFoundError, match=r"3 of 3 images are missing.*0\.jpg.*--data_dir"):
        check_exist(sources)
    (tmp_path / "2.jpg").write_bytes(picture())
    check_exist(sources)


def test_an_image_is_downloaded(server):
    server.answers = [(200, picture())]
    source = image_source({"file_name": server.url}, "ignored")
    assert source.exists()
    assert source.read().getpixel((0, 0)) == (200, 10, 10)


def test_a_failed_download_is_tried_again(server):
    server.answers = [(503, b""), (200, b"fine")]
    assert download(server.url) == b"fine"


def test_a_missing_page_is_not_tried_again(server):
    server.answers = [(404, b""), (200, b"never asked for")]
    with pytest.raises(OSError, match=r"a\.png could not be downloaded \(HTTP Error 404"):
        download(server.url)
    assert len(server.answers) == 1


def test_a_silent_server_is_given_up():
    with (
        HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as deaf,  # accepts, never answers
        pytest.raises(OSError, match=r"could not be downloaded.*timed out"),
    ):
        download(f"http://127.0.0.1:{deaf.server_port}/", timeout=0.05)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(OSError, match=r"http://127.0.0.1:1/a.jpg could not be downloaded"):
        download("http://127.0.0.1:1/a.jpg")


def test_a_web_page_in_place_of_an_image_is_refused(server):
    server.answers = [(200, b"<html>gone</html>")]
    with pytest.raises(ValueError, match=r"a\.png is not an image"):
        image_source({"file_name": server.url}, "").read()


def test_an_image_inside_a_tar_is_read_by_its_place(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"?" * 100 + picture() + b"?" * 50)
    source = ImageSource((str(tmp_path / "a.tar"),), member=(100, len(picture())))
    assert source.read().size == (20, 10)


def test_a_problem_that_is_known_is_raised_on_reading():
    source = ImageSource(("a.tar",), problem="sample 3 has no image")
    assert not source.exists()
    with pytest.raises(ValueError, match="sample 3 has no image"):
        source.read()


def test_the_folder_of_the_images_is_no_advice_about_tars():
    sources = [ImageSource(("a.tar",), problem=f"sample {n} of a.tar has no json") for n in "xy"]
    with pytest.raises(FileNotFoundError, match="2 of 2 images are missing: sample y") as caught:
        check_exist(sources)
    assert "--data_dir" not in str(caught.value)


def test_a_named_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"not found; looked for .*a\.jpg"):
        image_source({"file_name": "a.jpg"}, tmp_path).read()


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("two words.jpg", "/two%20words.jpg"),
        ("café.jpg?größe=1", "/caf%C3%A9.jpg?gr%C3%B6%C3%9Fe=1"),
        ("caf%C3%A9 100%.jpg", "/caf%C3%A9%20100%25.jpg"),
        ("a+b%20c;d=(1),2&e", "/a+b%20c;d=(1),2&e"),
        ('猫|"x"\t.jpg ', "/%E7%8C%AB%7C%22x%22.jpg"),
    ],
)
def test_what_an_address_cannot_hold_is_percent_encoded(server, typed, asked):
    server.answers = [(200, picture())]
    record = {"file_name": server.url.removesuffix("a.png").replace("http", "HTTP") + typed}
    assert image_source(record, "").read().size == (20, 10)
    assert server.asked == asked


@pytest.mark.parametrize(
    "url", ["http://[::1/a.jpg", "http://" + "ä" * 70 + "/a", "http://x/\ud800"]
)
def test_an_address_that_is_none_is_named(url):
    with pytest.raises(OSError, match="could not be downloaded"):
        download(url)
