"""A page with the toy model, served once for all tests of this folder."""

import json
import shutil
import socket
import threading
import uuid

import pytest

pytest.importorskip("gradio", reason="the page needs Gradio: pip install -r requirements-app.txt")

import httpx
import torch
from PIL import Image

from talk2dino.app.page import Page
from talk2dino.app.request import Entry, Limits, Models, find_entry
from talk2dino.app.server import ServerConfig, serve

CPU = torch.device("cpu")
MAX_UPLOAD_MB = 2
MAX_UPLOADS_MB = 5
FILE = {"meta": {"_type": "gradio.FileData"}}
LIMITS = Limits(max_pixels=4_000_000, max_side=320, max_categories=20)


class Client:
    """One visitor's session, without a browser."""

    def __init__(self, address):
        self.http = httpx.Client(base_url=address, timeout=60, trust_env=False)
        self.session = uuid.uuid4().hex
        config = self.http.get("config").json()
        ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        self.run = next(
            number["id"] for number in config["dependencies"] if ids["picture"] in number["inputs"]
        )

    def upload(self, path, name):
        """The server's path of an upload."""
        with open(path, "rb") as file:
            answer = self.http.post("gradio_api/upload", files={"files": (name, file)})
        return answer.json()[0]

    def join(self, picture, words="cup, spoon", model="toy"):
        """The answer to asking for a turn with a request without refinement."""
        data = [0.5, picture, words, model, False, 0.5, [], "max"]
        request = {"fn_index": self.run, "data": data, "session_hash": self.session}
        return self.http.post("gradio_api/queue/join", json=request)

    def segment(self, picture, words="cup, spoon"):
        """The last event of a request."""
        self.join(picture, words).raise_for_status()
        with self.http.stream(
            "GET", "gradio_api/queue/data", params={"session_hash": self.session}
        ) as events:
            for line in events.iter_lines():
                event = json.loads(line.removeprefix("data: ")) if line else {}
                if event.get("msg") == "process_completed":
                    return event
        raise AssertionError("the server has not answered")


class Gate:
    """A model that finishes loading when the test says so."""

    def __init__(self):
        self.entered, self.opened = threading.Event(), threading.Event()

    def entry(self):
        toy = find_entry("toy")
        return Entry("slow", lambda: self._find(toy), toy.rules)

    def _find(self, toy):
        self.entered.set()
        self.opened.wait(timeout=60)
        return toy.find()


@pytest.fixture(scope="session")
def gate():
    return Gate()


@pytest.fixture(scope="session")
def models(gate):
    return Models([find_entry("toy"), gate.entry(), find_entry("ovsegmentor_toy=seeded:0")], CPU)


@pytest.fixture
def photo(photos, tmp_path):
    """What the page sends for a photograph."""
    path = shutil.copy(photos / "chelsea.png", tmp_path)
    return {"path": str(path), "orig_name": "chelsea.png"}


@pytest.fixture
def small_photo(photos, tmp_path):
    """The same of 60 x 40 pixels, for tests that are not about pixels."""
    path = tmp_path / "small.png"
    Image.open(photos / "coffee.png").convert("RGB").resize((60, 40)).save(path)
    return {"path": str(path), "orig_name": "my coffee.png"}


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    """The folder of uploads, in which both lie."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def connections():
    """Hosts that this process has connected to while the page was served."""
    return set()


@pytest.fixture(scope="session")
def page(models, photos, connections):
    """A served page."""
    connect = socket.socket.connect

    def noted(self, target):
        connections.add(target[0] if isinstance(target, tuple) else "local")
        return connect(self, target)

    examples = [(photos / "chelsea.png", "cat, nose"), (photos / "coffee.png", "cup, spoon")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noted)
        config = ServerConfig(max_upload_mb=MAX_UPLOAD_MB, max_uploads_mb=MAX_UPLOADS_MB)
        with serve(Page(models, LIMITS, examples), config) as page:
            yield page


@pytest.fixture(scope="session")
def address(page):
    """Address of the served page."""
    return page.local_url
