"""The page in a real browser: Chromium without a window, driven by Playwright.

Screenshots are kept in build/app, or in the folder that TALK2DINO_ARTIFACTS names.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from talk2dino.app.page import Page
from talk2dino.app.request import Models
from talk2dino.app.server import ServerConfig, serve
from tests.app.conftest import CPU, FILE, LIMITS, Client, Gate

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
expect = sync_api.expect

# Gradio asks pandas for things that pandas will drop.
pytestmark = pytest.mark.filterwarnings("ignore:::gradio")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MARKUP = "<img src=x onerror=alert(1)>"
WAIT = 20_000  # milliseconds: a busy machine is no failure


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests here; stopped after them, as its event loop would stay."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def artifacts(root):
    folder = Path(os.environ.get("TALK2DINO_ARTIFACTS") or root / "build" / "app")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Visitor:
    """Someone with the page open; `foreign` are requests to other machines."""

    def __init__(self, browser, address):
        permissions = ["camera", "clipboard-read", "clipboard-write"]
        size = {"width": 1280, "height": 900}
        # A context each: tabs of one context would share six connections to the server.
        self.context = browser.new_context(viewport=size, permissions=permissions)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.foreign, self.dialogs, self.errors = [], [], []
        self.page.on("request", lambda request: self._note(request.url, address))
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address, wait_until="commit")

    def _note(self, url, address):
        if not url.startswith((address, "data:", "blob:")):
            self.foreign.append(url)

    def upload(self, path):
        self.page.set_input_files("#picture input[type=file]", str(path))
        self.picture_shown()

    def picture_shown(self):
        self.page.wait_for_selector("#picture img[src*='gradio_api/file']")

    def name(self, categories):
        self.page.fill("#categories textarea", categories)

    def segment(self, ending="done"):
        """Press the button and wait; returns what the page says."""
        self.page.click("#run")
        return self.ended(ending)

    def ended(self, ending="done"):
        self.page.wait_for_selector(f"#status .t2d-{ending}")
        return self.page.inner_text("#status")

    def legend(self):
        return [line.strip() for line in self.page.locator("#areas li span").all_inner_texts()]

    def click(self, right, down):
        """Click the overlay at shares of its width and height."""
        image = self.page.locator("#overlay img")
        box = image.bounding_box()
        image.click(position={"x": box["width"] * right, "y": box["height"] * down})

    def download(self, press):
        with self.page.expect_download() as download:
            press()
        return Path(download.value.path()), download.value.suggested_filename

    def tab_to(self, selector):
        """Press Tab until the focus is inside `selector`."""
        for _ in range(60):
            self.page.keyboard.press("Tab")
            inside = f"!!document.activeElement?.closest({selector!r})"
            if self.page.evaluate(inside):
                return
        raise AssertionError(f"the keyboard does not reach {selector}")


@pytest.fixture
def visit_many(browser, address) -> Iterator:
    """Opens pages at once; afterwards, nothing has left the machine or gone wrong."""
    visitors = []

    def open_pages(count):
        visitors.extend(Visitor(browser, address) for _ in range(count))
        for visitor in visitors:
            visitor.page.wait_for_selector("#run")
        return visitors

    yield open_pages
    for visitor in visitors:
        visitor.context.close()
    assert [visitor.foreign for visitor in visitors if visitor.foreign] == []
    assert [visitor.errors for visitor in visitors if visitor.errors] == []
    assert [visitor.dialogs for visitor in visitors if visitor.dialogs] == []


@pytest.fixture
def visitor(visit_many):
    """Someone who has just opened the page."""
    return visit_many(1)[0]


def test_a_photograph_is_uploaded_segmented_clicked_and_downloaded(visitor, photos, artifacts):
    page = visitor.page
    expect(page.locator("#notice")).to_contain_text("untrained")
    visitor.upload(photos / "chelsea.png")
    visitor.name("cat, nose, polar_bear")
    assert "451 × 300 pixels and was segmented at 320 × 213" in visitor.segment()
    assert sorted(visitor.legend()) == ["cat", "nose", "polar bear"]
    image = page.locator("#overlay img")
    expect(image).to_be_visible()
    visitor.click(0.25, 0.8)
    expect(page.locator("#pixel li")).to_have_count(3)
    column, row = map(int, page.input_value("#position input, #position textarea").split(","))
    assert abs(column - 80) <= 2
    assert abs(row - 170) <= 2
    page.screenshot(path=artifacts / "page.png", full_page=True)

    path, name = visitor.download(lambda: page.click("#mask-file"))
    with Image.open(path) as mask:
        assert (mask.mode, mask.size, name) == ("P", (451, 300), "chelsea_mask.png")
        assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}
    path, name = visitor.download(lambda: page.click("#overlay-file"))
    with Image.open(path) as overlay:
        assert (overlay.format, name) == ("PNG", "chelsea_overlay.png")
        assert overlay.height > 213


def test_a_click_on_a_tall_picture_counts_from_the_picture_not_from_its_frame(
    visitor, photos, tmp_path
):
    with Image.open(photos / "astronaut.png") as image:
        image.crop((100, 0, 200, 300)).save(tmp_path / "tall.png")
    visitor.upload(tmp_path / "tall.png")
    visitor.name("astronaut")
    visitor.segment()
    visitor.click(0.1, 0.9)
    expect(visitor.page.locator("#pixel ul")).to_have_attribute(
        "aria-label", re.compile("Scores at column (9|10|11), row (269|270|271)")
    )


def test_sliders_and_heat_maps_need_no_new_request(visitor, photos, artifacts):
    page = visitor.page
    expect(page.locator("#threshold")).to_be_hidden()
    page.check("#background input")
    expect(page.locator("#threshold")).to_be_visible()
    page.locator("#examples button").first.click()
    visitor.picture_shown()
    expect(page.locator("#categories textarea")).to_have_value("cat, nose")
    visitor.segment()
    assert "background" in visitor.legend()
    page.fill("#threshold input[type=number]", "0.8")
    page.keyboard.press("Tab")
    expect(page.locator("#areas li").first).to_contain_text("100.0 %")
    page.get_by_role("tab", name="Heat maps").click()
    expect(page.locator("#heat .caption-label")).to_have_text(["cat", "nose"])
    expect(page.locator("#scale")).to_contain_text("sigmoid(cosine)")
    page.screenshot(path=artifacts / "heat_maps.png", full_page=True)


def test_groups_are_shown_where_the_model_has_them_and_no_tab_changes_the_width(
    visitor, photos, artifacts
):
    page = visitor.page
    tab = page.get_by_role("tab", name="Groups")
    expect(tab).to_have_count(0)
    page.click("#model input")
    page.get_by_role("option", name="ovsegmentor_toy").click()
    expect(page.locator("#notice")).to_contain_text("ovsegmentor_toy")
    expect(page.get_by_label("pamr")).to_be_disabled()
    visitor.upload(photos / "coffee.png")
    visitor.name("cup, spoon")
    visitor.segment()
    tab.click()
    expect(page.locator("#groups .caption-label")).to_have_text(["stage 1"])
    page.screenshot(path=artifacts / "groups.png", full_page=True)
    for name in ("Overlay", "Heat maps", "Groups"):
        page.get_by_role("tab", name=name).click()
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
        assert page.locator(".gradio-container").bounding_box()["width"] == 1240


def test_choosing_another_model_leaves_the_result_as_it_is(visitor, photos):
    page = visitor.page
    page.check("#background input")
    page.fill("#threshold input[type=number]", "0.3")
    visitor.upload(photos / "coffee.png")
    visitor.name("cup, spoon")
    visitor.segment()
    expect(page.locator("#areas li", has_text="background")).to_contain_text("0.0 %")
    before = page.locator("#areas li").all_inner_texts()
    page.click("#model input")
    page.get_by_role("option", name="ovsegmentor_toy").click()
    expect(page.locator("#threshold input[type=number]")).to_have_value("0.95")
    page.click("#position input, #position textarea")
    page.keyboard.type("1, 1")
    expect(page.locator("#pixel li")).to_have_count(3)  # a handler has answered since
    assert page.locator("#areas li").all_inner_texts() == before


def test_a_phone_shows_the_page_without_scrolling_sideways(visitor, photos, artifacts):
    page = visitor.page
    page.set_viewport_size({"width": 390, "height": 844})
    visitor.upload(photos / "coffee.png")
    visitor.name("cup, spoon, a very long name of a category that has to be broken somewhere")
    visitor.segment()
    image = page.locator("#overlay img")
    image.click()
    expect(page.locator("#pixel li")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = image.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.screenshot(path=artifacts / "phone.png", full_page=True)


def test_examples_are_buttons_with_a_name_and_a_picture(visitor):
    examples = visitor.page.locator("#examples")
    for name, words in (("coffee", "cup, spoon"), ("chelsea", "cat, nose")):
        button = examples.get_by_role("button", name=name)
        image = button.locator("img")
        image.scroll_into_view_if_needed()
        visitor.page.wait_for_function("image => image.naturalWidth", arg=image.element_handle())
        button.click()
        expect(visitor.page.locator("#categories textarea")).to_have_value(words)
        shown = visitor.page.locator("#picture img[src*='gradio_api/file']")
        expect(shown).to_have_attribute("src", re.compile(f"/{name}[.]png$"))


def test_the_keyboard_alone_is_enough(visitor):
    keyboard = visitor.page.keyboard
    visitor.tab_to("#examples")
    keyboard.press("Enter")
    visitor.picture_shown()
    visitor.tab_to("#categories")
    keyboard.press("ControlOrMeta+a")
    keyboard.type("whiskers, ear")
    keyboard.press("Enter")
    visitor.ended()
    assert sorted(visitor.legend()) == ["ear", "whiskers"]
    visitor.tab_to("#position")
    keyboard.type("10, 20")
    expect(visitor.page.locator("#pixel ul")).to_have_attribute(
        "aria-label", "Scores at column 10, row 20"
    )
    visitor.tab_to("#mask-file")
    _, name = visitor.download(lambda: keyboard.press("Enter"))
    assert name == "chelsea_mask.png"
    visitor.tab_to("#opacity")


def test_visitors_at_once_see_their_own_results(visit_many, photos, tmp_path):
    visitors = visit_many(2)
    for number, visitor in enumerate(visitors):
        picture = tmp_path / str(number) / "same name.png"
        picture.parent.mkdir()
        with Image.open(photos / "chelsea.png") as image:
            image.convert("RGB").resize((60 + number, 40)).save(picture)
        visitor.upload(picture)
        visitor.page.get_by_label("pamr").uncheck()
        visitor.name(f"thing {number}, other {number}")
    for visitor in visitors:
        visitor.page.click("#run")
    for number, visitor in enumerate(visitors):
        assert f"{60 + number} × 40 pixels" in visitor.ended()
        assert sorted(visitor.legend()) == [f"other {number}", f"thing {number}"]
        path, name = visitor.download(lambda page=visitor.page: page.click("#mask-file"))
        assert name == "same_name_mask.png"
        with Image.open(path) as mask:
            assert mask.width == 60 + number


def test_stopped_requests_leave_the_queue_to_the_others(visit_many, photos, gate):
    running, queued, waiting = visitors = visit_many(3)
    for visitor in visitors:
        visitor.upload(photos / "coffee.png")
        visitor.name("cup, spoon")
    running.page.click("#model input")
    running.page.get_by_role("option", name="slow").click()
    running.page.click("#run")
    expect(running.page.locator("#status")).to_contain_text("Loading slow")
    assert gate.entered.wait(timeout=20)
    for visitor in (queued, waiting):
        visitor.page.click("#run")
        expect(visitor.page.locator("#status")).to_contain_text("Waiting for a turn")
    for visitor in (running, queued):
        visitor.page.click("#stop")
        expect(visitor.page.locator("#status")).to_contain_text("Stopped")
        expect(visitor.page.locator("#run")).to_be_enabled()
    gate.opened.set()
    waiting.ended()
    assert sorted(waiting.legend()) == ["cup", "spoon"]
    for visitor in (running, queued):
        expect(visitor.page.locator("#status")).to_contain_text("Stopped")
        assert visitor.legend() == []
        expect(visitor.page.locator(".toast-body")).to_have_count(0)


def test_a_full_queue_says_so(browser, photos, small_photo):
    gate = Gate()
    config = ServerConfig(max_queue=1)
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serve(Page(Models([gate.entry()], CPU), LIMITS), config))
        clients = [Client(served.local_url) for _ in range(2)]
        for client in clients:
            stack.callback(client.http.close)
        stack.callback(gate.opened.set)
        refused = Visitor(browser, served.local_url)
        stack.callback(refused.context.close)
        refused.upload(photos / "coffee.png")
        refused.name("cup, spoon")
        for client in clients:
            picture = {"path": client.upload(small_photo["path"], "cup.png"), **FILE}
            assert client.join(picture, model="slow").status_code == 200
            assert gate.entered.wait(timeout=20)  # the first has its turn, the second waits
        assert "Too many requests are waiting" in refused.segment("error")
        expect(refused.page.locator("#run")).to_be_enabled()


def test_bad_input_is_answered_in_words(visitor, tmp_path, photos):
    page = visitor.page
    visitor.name("cat")
    assert "Choose a picture" in visitor.segment("error")
    (tmp_path / "notes.png").write_text("no picture")
    visitor.upload(tmp_path / "notes.png")
    page.click("#run")
    expect(page.locator("#status")).to_contain_text("notes.png is not an image")
    page.get_by_label("Remove Image").click()
    Image.new("RGB", (2100, 2000)).save(tmp_path / "large.png")
    visitor.upload(tmp_path / "large.png")
    page.click("#run")
    expect(page.locator("#status")).to_contain_text("at most 4 megapixels")
    visitor.name(" , ")
    page.click("#run")
    expect(page.locator("#status")).to_contain_text("at least one category")
    visitor.name(", ".join(f"thing {number}" for number in range(300)))
    page.click("#run")
    expect(page.locator("#status")).to_contain_text("300 categories are too many")


def test_markup_in_a_name_stays_text(visitor, photos):
    visitor.upload(photos / "chelsea.png")
    visitor.name(f"{MARKUP}, cat")
    visitor.segment()
    page = visitor.page
    assert MARKUP in visitor.legend()
    page.locator("#overlay img").click()
    expect(page.locator("#pixel")).to_contain_text(MARKUP)
    page.get_by_role("tab", name="Heat maps").click()
    expect(page.locator("#heat .caption-label").first).to_have_text(MARKUP)
    assert page.locator("img[src='x']").count() == 0


def test_a_webcam_snapshot_is_segmented(visitor):
    page = visitor.page
    page.get_by_label("Capture from camera").click()
    page.get_by_text(re.compile("access", re.IGNORECASE)).first.click()
    page.wait_for_function("document.querySelector('#picture video')?.readyState >= 2")
    page.get_by_label("capture photo").click()
    visitor.picture_shown()
    visitor.name("pie, clock")
    visitor.segment()
    assert sorted(visitor.legend()) == ["clock", "pie"]


def test_a_pasted_picture_is_segmented(visitor):
    page = visitor.page
    page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(80, 60);
            canvas.getContext("2d").fillRect(10, 10, 30, 30);
            const png = await canvas.convertToBlob({type: "image/png"});
            await navigator.clipboard.write([new ClipboardItem({"image/png": png})]);
        }"""
    )
    page.get_by_label("Paste from clipboard").click()
    visitor.picture_shown()
    visitor.name("square")
    assert "80 × 60 pixels" in visitor.segment()


def test_the_server_has_called_nobody(address, connections):
    assert connections <= {"127.0.0.1", "::1", "local"}, connections
