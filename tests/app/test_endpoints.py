"""The page's HTTP endpoints, used as by somebody who does not use the page."""

import contextlib
import datetime
import gc
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from gradio import route_utils, state_holder
from PIL import Image

from talk2dino.app.page import has_address
from tests.app.conftest import FILE, MAX_UPLOAD_MB, MAX_UPLOADS_MB, Client

# Gradio asks pandas for things that pandas will drop.
pytestmark = pytest.mark.filterwarnings("ignore:::gradio")

LEGEND, OVERLAY_FILE, STATUS = 1, 4, 5


@pytest.fixture
def client(address):
    client = Client(address)
    yield client
    client.http.close()


@pytest.mark.parametrize("marked", [FILE, {}], ids=["as a file", "unmarked"])
def test_a_picture_that_was_not_uploaded_is_not_read(client, tmp_path, marked):
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    event = client.segment({"path": str(tmp_path / "private.png"), **marked})
    assert "_overlay.png" not in json.dumps(event)
    if marked:  # Gradio has refused it
        assert event["success"] is False
    else:
        assert "not uploaded" in event["output"]["data"][STATUS]


@pytest.mark.parametrize("path", ["https://example.org/x.png", "http://127.0.0.1:1/x.png"])
def test_the_server_fetches_nothing_for_a_visitor(client, path, connections):
    before = set(connections)
    event = client.segment({"path": path, **FILE})
    assert "uploads only" in event["output"]["error"]
    assert connections == before


def test_an_address_is_found_wherever_it_is_put():
    assert has_address([1, {"x": [{"path": "ftp://a/b", "meta": {}}]}])
    assert not has_address([None, "https://a", {"path": "/tmp/a.png", "url": "http://me/a.png"}])


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../etc/passwd", "pyproject.toml"])
def test_no_other_file_is_served(client, path):
    assert client.http.get(f"gradio_api/file={path}").status_code in (403, 404)


def test_an_uploaded_page_is_not_shown_as_one(client, tmp_path):
    (tmp_path / "x.html").write_text("<script>alert(1)</script>")
    path = client.upload(tmp_path / "x.html", "../../x.html")
    answer = client.http.get(f"gradio_api/file={path}")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert ".." not in path


def test_an_upload_keeps_its_name_out_of_the_paths(client, small_photo):
    path = client.upload(small_photo["path"], "../../<b>.png")
    event = client.segment({"path": path, "orig_name": "../../<b>.png", **FILE})
    saved = event["output"]["data"][OVERLAY_FILE]["value"]["path"]
    assert saved.endswith("/b_overlay.png")
    assert ".." not in saved


def test_a_file_above_the_limit_is_refused(client, tmp_path):
    for size, code in ((MAX_UPLOAD_MB * 2**20, 200), (MAX_UPLOAD_MB * 2**20 + 1, 413)):
        (tmp_path / "x.png").write_bytes(bytes(size))
        with (tmp_path / "x.png").open("rb") as file:
            answer = client.http.post("gradio_api/upload", files={"files": ("x.png", file)})
        assert answer.status_code == code, answer.text


def test_the_oldest_uploads_make_room_for_the_newest(client, tmp_path):
    paths = []
    for number in range(4):
        (tmp_path / "x.png").write_bytes(bytes([number]) * MAX_UPLOAD_MB * 2**20)
        paths.append(Path(client.upload(tmp_path / "x.png", "x.png")))
    kept = [path for path in paths if path.exists()]
    assert kept == paths[-len(kept) :] and 1 <= len(kept) < 4
    folder = paths[0].parents[1]
    sizes = [path.stat().st_size for path in folder.rglob("x.png")]
    assert sum(sizes) <= MAX_UPLOADS_MB * 2**20


def test_an_example_that_is_uploaded_too_does_not_make_room(client, photos, tmp_path):
    example = Path(client.upload(photos / "chelsea.png", "chelsea.png"))
    for number in range(4):
        (tmp_path / "x.png").write_bytes(bytes([number]) * MAX_UPLOAD_MB * 2**20)
        client.upload(tmp_path / "x.png", "x.png")
    assert client.http.get(f"gradio_api/file={example}").status_code == 200


def test_what_is_left_of_a_broken_upload_goes_first(client, tmp_path):
    (tmp_path / "x.png").write_bytes(bytes(MAX_UPLOAD_MB * 2**20))
    path = Path(client.upload(tmp_path / "x.png", "x.png"))
    left = path.parents[1] / "tmp_broken_off"
    left.write_bytes(bytes(MAX_UPLOADS_MB * 2**20))
    os.utime(left, (0, 0))
    client.upload(tmp_path / "x.png", "y.png")
    assert path.exists() and not left.exists()


def test_more_than_all_uploads_may_have_is_told_to_come_back(client):
    answer = client.http.post("gradio_api/upload", content=bytes(MAX_UPLOADS_MB * 2**20 + 1))
    assert (answer.status_code, "again" in answer.text) == (503, True)
    unknown_length = client.http.post("gradio_api/upload", content=iter([b"x"]))
    assert unknown_length.status_code == 411


class Later(datetime.datetime):
    """A clock that is more than an hour ahead."""

    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(minutes=61)


def test_an_upload_is_deleted_after_an_hour_but_no_example(client, page, small_photo, monkeypatch):
    upload = client.upload(small_photo["path"], "holiday.png")
    parts = client.http.get("config").json()["components"]
    (example, *_) = [part["props"]["icon"]["path"] for part in parts if part["props"].get("icon")]
    interval, age = page.delete_cache
    assert interval <= 3600
    route_utils.delete_files_created_by_app(page, age)
    assert client.http.get(f"gradio_api/file={upload}").status_code == 200
    monkeypatch.setattr(route_utils, "datetime", Later)
    route_utils.delete_files_created_by_app(page, age)
    assert client.http.get(f"gradio_api/file={upload}").status_code in (403, 404)
    assert client.http.get(f"gradio_api/file={example}").status_code == 200


def test_the_result_of_a_closed_page_is_deleted_after_an_hour(
    client, page, small_photo, monkeypatch
):
    path = client.upload(small_photo["path"], "holiday.png")
    event = client.segment({"path": path, **FILE})
    result = event["output"]["data"][OVERLAY_FILE]["value"]["path"]
    sessions = page.app.state_holder
    sessions.session_data[client.session].is_closed = True
    sessions.delete_all_expired_state()
    assert client.http.get(f"gradio_api/file={result}").status_code == 200
    monkeypatch.setattr(state_holder, "datetime", SimpleNamespace(datetime=Later))
    sessions.delete_all_expired_state()
    gc.collect()
    assert client.http.get(f"gradio_api/file={result}").status_code in (403, 404)


def test_requests_at_once_each_get_their_own_result(address, small_photo):
    legends = {}

    def visit(number):
        client = Client(address)
        with contextlib.closing(client.http):
            path = client.upload(small_photo["path"], f"{number}.png")
            event = client.segment({"path": path, **FILE}, f"thing {number}, other {number}")
            legends[number] = event["output"]["data"][LEGEND]

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        words = [f"thing {number}<", f"other {number}<"]
        assert [word in legends[number] for word in words] == [True, True]
        assert legends[number].count("<li") == 2
