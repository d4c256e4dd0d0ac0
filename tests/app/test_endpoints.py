"""The page's HTTP endpoints, used as by somebody who does not use the page."""

import contextlib
import json
import threading
import uuid

import httpx
import pytest
from PIL import Image

from talk2dino.app.page import has_address

# Gradio asks pandas for things that pandas will drop.
pytestmark = pytest.mark.filterwarnings("ignore:::gradio")

FILE = {"meta": {"_type": "gradio.FileData"}}
LEGEND, OVERLAY_FILE, STATUS = 1, 4, 9


class Client:
    """One visitor's session."""

    def __init__(self, address):
        self.http = httpx.Client(base_url=address, timeout=60, trust_env=False)
        self.session = uuid.uuid4().hex
        config = self.http.get("config").json()
        ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        self.run = next(
            number["id"]
            for number in config["dependencies"]
            if number["inputs"] and number["inputs"][0] == ids["picture"]
        )

    def upload(self, path, name):
        """The server's path of an upload."""
        with path.open("rb") as file:
            answer = self.http.post("gradio_api/upload", files={"files": (name, file)})
        return answer.json()[0]

    def segment(self, picture, words="cup, spoon"):
        """The last event of a request without refinement."""
        data = [picture, words, "toy", False, 0.5, False, 0.5, None, None]
        request = {"fn_index": self.run, "data": data, "session_hash": self.session}
        self.http.post("gradio_api/queue/join", json=request).raise_for_status()
        with self.http.stream(
            "GET", "gradio_api/queue/data", params={"session_hash": self.session}
        ) as events:
            for line in events.iter_lines():
                event = json.loads(line.removeprefix("data: ")) if line else {}
                if event.get("msg") == "process_completed":
                    return event
        raise AssertionError("the server has not answered")


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
    path = client.upload(small_photo.path, "../../<b>.png")
    event = client.segment({"path": path, "orig_name": "../../<b>.png", **FILE})
    saved = event["output"]["data"][OVERLAY_FILE]["value"]["path"]
    assert saved.endswith("/b_overlay.png")
    assert ".." not in saved


def test_ten_requests_at_once_each_get_their_own_result(address, small_photo):
    legends = {}

    def visit(number):
        client = Client(address)
        with contextlib.closing(client.http):
            path = client.upload(small_photo.path, f"{number}.png")
            event = client.segment({"path": path, **FILE}, f"thing {number}, other {number}")
            legends[number] = event["output"]["data"][LEGEND]

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(10):
        words = [f"thing {number}<", f"other {number}<"]
        assert [word in legends[number] for word in words] == [True, True]
        assert legends[number].count("<li") == 2
