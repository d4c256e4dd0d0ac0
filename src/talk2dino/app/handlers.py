"""What happens when the page is used: values of its components in, new values out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from talk2dino.app import pictures
from talk2dino.app.inputs import Limits, Upload
from talk2dino.app.models import GUESSED_THRESHOLD, ModelEntry, Models
from talk2dino.app.pictures import View, enlargement, heat_of, look_at
from talk2dino.app.work import Outcome, Request, Results, segment

logger = logging.getLogger(__name__)

USER_ERRORS = (ValueError, OSError, RuntimeError, MemoryError)
BUG = "Something went wrong here; the terminal of the server says what."
WAITING = "Waiting for a turn …"
REFUSED = "Too many requests are waiting. Try again in a minute."
STOPPED = "Stopped. Press Segment to start again."


@dataclass(frozen=True)
class Handlers:
    """The handlers that need what all visitors of a page share."""

    models: Models
    """On offer."""
    results: Results
    """Kept for clicks and sliders."""
    limits: Limits
    """Of one request."""

    def on_run(self, *values: Any) -> Iterator[list[Any]]:
        """Segment; shows what is being done, then the result or what was wrong."""
        picture, words, model, background, threshold, refine, opacity, old_key, known = values[:9]
        if not known and threshold == GUESSED_THRESHOLD:
            threshold = None
        try:
            upload, more = read_upload(picture), values[9:]
            request = Request(upload, words, model, background, threshold, refine, *more)
            for step in segment(request, self.models, self.limits):
                if isinstance(step, str):
                    yield _said(step, "busy", busy=True)
                    continue
                yield self._finished(step, opacity, old_key)
        except USER_ERRORS as error:
            yield _said(sentence(error), "error", busy=False)
        except Exception:
            logger.exception("a request failed")
            yield _said(BUG, "error", busy=False)

    def on_look(
        self,
        key: str | None,
        threshold: float,
        opacity: float,
        position: str,
        model: str,
    ) -> list[Any]:
        """Draw the kept result again, as the sliders and the position say.

        The threshold is that of `model`, the chosen one: a result of another model keeps its own.
        """
        if key is None:
            return [gr.skip()] * 6
        result = self.results.get(key)
        if result is not None and model != result.segmentation.settings["model"]:
            threshold = result.segmentation.background or threshold
        try:
            view = look_at(self.results, key, threshold, opacity, position)
        except USER_ERRORS as error:
            return [gr.skip()] * 5 + [pictures.status(sentence(error), "error")]
        return [*_shown(view), gr.skip()]

    def on_click(
        self,
        key: str | None,
        threshold: float,
        opacity: float,
        model: str,
        event: gr.SelectData,
    ) -> list[Any]:
        """Show the scores at the pixel that was clicked."""
        result = self.results.get(key)
        times = enlargement(result.segmentation) if result is not None else 1
        position = ", ".join(str(value // times) for value in event.index)
        return [*self.on_look(key, threshold, opacity, position, model), position]

    def on_model(self, name: str) -> list[Any]:
        """Say what there is to know about the chosen model, and offer what it can."""
        models = self.models
        try:
            entry = models.entry(name)
        except ValueError as error:
            return [pictures.notice(str(error)), *[gr.skip()] * 3]
        slider = gr.Slider(**threshold_of(models, entry))
        refine = gr.CheckboxGroup(**refinement_of(entry))
        known = models.facts(name) is not None
        return [pictures.notice(models.notice(name)), slider, refine, known]

    def on_loaded(self, known: bool, threshold: float, model: str) -> list[Any]:
        """Say what loading the chosen model has told, if the page could not say it before."""
        models = self.models
        if known or model not in models.entries or models.facts(model) is None:
            return [gr.skip()] * 3
        moved = threshold != GUESSED_THRESHOLD
        slider = gr.skip() if moved else gr.Slider(value=models.threshold(model))
        return [pictures.notice(models.notice(model)), slider, True]

    def _finished(self, outcome: Outcome, opacity: float, old_key: str | None) -> list[Any]:
        key = self.results.put(outcome.result)
        shown = _shown(look_at(self.results, key, opacity=opacity))
        self.results.discard(old_key)
        groups = [
            (picture, f"stage {number}") for number, picture in enumerate(outcome.groups, start=1)
        ]
        tab = gr.Tab(visible=bool(groups))
        buttons = _buttons(pictures.status(outcome.text, "done"), busy=False)
        no_pixel = ""  # is chosen in a new result
        return [*shown, *heat_of(outcome.result), no_pixel, key, *buttons, tab, groups]


def _said(text: str, kind: str, busy: bool) -> list[Any]:
    """Values of everything that `on_run` may change, where only the status does."""
    return [*[gr.skip()] * 9, *_buttons(pictures.status(text, kind), busy), *[gr.skip()] * 2]


def threshold_of(models: Models, entry: ModelEntry) -> dict[str, Any]:
    """The slider of background thresholds as a model needs it."""
    lowest, highest = entry.rules.thresholds
    info = None if entry.rules.redraws else "Press Segment to apply it"
    value = models.threshold(entry.name)
    return {"minimum": lowest, "maximum": highest, "value": value, "info": info}


def refinement_of(entry: ModelEntry) -> dict[str, Any]:
    """The switches of refinements as a model needs them."""
    refines = entry.rules.refines
    able = refines is not None
    info = "Scores that follow the picture" if able else "This model has no refinement"
    return {"value": list(refines or ()), "interactive": able, "info": info}


def read_upload(payload: Mapping[str, Any] | None) -> Upload | None:
    """The file behind the picture, unopened.

    Gradio checks of what is marked as a file that it is an upload; it lets other paths pass, so
    that the page's endpoints would read any picture of the server. Here the folder is checked.
    """
    if not payload or not payload.get("path"):
        return None
    path, folder = Path(payload["path"]).resolve(), Path(get_upload_folder()).resolve()
    if not path.is_relative_to(folder):
        raise ValueError("This picture was not uploaded. Choose it again.")
    return Upload(path, payload.get("orig_name") or path.name)


def on_begin() -> list[Any]:
    """The page while a request waits for its turn."""
    return _buttons(pictures.status(WAITING, "busy"), busy=True)


def on_failure(shown_status: str) -> list[Any]:
    """The page when Gradio did not take a request, because too many wait, or cut it off."""
    if STOPPED in shown_status:  # cut off by the visitor, who has been told
        return [gr.skip()] * 3
    return _buttons(pictures.status(REFUSED, "error"), busy=False)


def on_stop() -> list[Any]:
    """The page after a request was stopped."""
    return _buttons(pictures.status(STOPPED), busy=False)


def sentence(error: BaseException) -> str:
    """What an error says, or its kind if it says nothing."""
    return str(error) or type(error).__name__


def _buttons(status: str, busy: bool) -> list[Any]:
    """The status line, and which of the two buttons can be pressed."""
    return [status, gr.Button(interactive=not busy), gr.Button(interactive=busy)]


def _shown(view: View) -> list[Any]:
    return [
        view.overlay,
        view.legend,
        view.pixel,
        gr.DownloadButton(value=str(view.mask_file), interactive=True),
        gr.DownloadButton(value=str(view.overlay_file), interactive=True),
    ]
