"""Where images are looked for, on disk and over (loopback) HTTP."""

import io
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image

from talk2dino.features.sources import ImageSource, check_any_exists, download, image_source


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
    with pytest.raises(FileNotFoundError, match=r"none of the 3 images exists.*0\.jpg.*--data_dir"):
        check_any_exists(sources)
    (tmp_path / "2.jpg").write_bytes(picture())
    check_any_exists(sources)


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
    with pytest.raises(FileNotFoundError, match="of the 2 images exists: sample y") as caught:
        check_any_exists(sources)
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
