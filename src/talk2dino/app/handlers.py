"""What happens when the page is used: values of its components in, new values out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from talk2dino.app import pictures
from talk2dino.app.inputs import Limits
from talk2dino.app.models import Entry, Models
from talk2dino.app.work import Result, Results, segment

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
    limits: Limits
    """Of one request."""
    results: Results = field(default_factory=Results)
    """Those that sessions keep for clicks and sliders."""

    def on_run(self, opacity: float, *asked: Any) -> Iterator[list[Any]]:
        """Segment; shows what is being done, then the result or what was wrong."""
        try:
            for step in segment(self.models, self.limits, *asked):
                if isinstance(step, str):
                    yield _said(step, "busy", busy=True)
                else:
                    self.results.add(step)
                    yield _finished(step, opacity)
        except USER_ERRORS as error:
            yield _said(str(error) or type(error).__name__, "error", busy=False)
        except Exception:
            logger.exception("a request failed")
            yield _said(BUG, "error", busy=False)

    def on_model(self, name: str) -> list[Any]:
        """Say what there is to know about the chosen model, and offer what it can."""
        entry = self.models.entries.get(name)
        if entry is None:
            return [gr.skip()] * 3
        slider, refine = gr.Slider(**threshold_of(entry)), gr.CheckboxGroup(**refinement_of(entry))
        return [pictures.notice(entry.notice), slider, refine]


def on_look(
    result: Result | None, threshold: float, opacity: float, position: str, model: str
) -> list[Any]:
    """Draw the kept result again, as the sliders and the position say.

    The threshold is that of `model`, the chosen one: a result of another model keeps its own.
    """
    if result is None:
        return [gr.skip()] * 6
    try:
        own = model == result.model
        return [*_drawn(result, threshold if own else None, opacity, position), gr.skip()]
    except USER_ERRORS as error:
        return [gr.skip()] * 5 + [pictures.status(str(error), "error")]


def on_click(
    result: Result | None, threshold: float, opacity: float, model: str, event: gr.SelectData
) -> list[Any]:
    """Show the scores at the pixel that was clicked."""
    times = pictures.enlargement(result.picture.image) if result is not None else 1
    position = ", ".join(str(value // times) for value in event.index)
    return [*on_look(result, threshold, opacity, position, model), position]


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


def threshold_of(entry: Entry) -> dict[str, Any]:
    """The slider of background thresholds as a model needs it."""
    lowest, highest = entry.rules.thresholds
    info = None if entry.rules.redraws else "Press Segment to apply it"
    return {"minimum": lowest, "maximum": highest, "value": entry.rules.threshold, "info": info}


def refinement_of(entry: Entry) -> dict[str, Any]:
    """The switches of refinements as a model needs them."""
    refines = entry.rules.refines
    able = refines is not None
    info = "Scores that follow the picture" if able else "This model has no refinement"
    return {"value": list(refines or ()), "interactive": able, "info": info}


def _finished(result: Result, opacity: float) -> list[Any]:
    groups = [(picture, f"stage {n}") for n, picture in enumerate(result.groups, start=1)]
    tab = gr.Tab(visible=bool(groups))
    buttons = _buttons(pictures.status(result.text, "done"), busy=False)
    no_pixel = ""  # is chosen in a new result
    heat = pictures.heat_of(result)
    return [*_drawn(result, None, opacity), *heat, no_pixel, result, *buttons, tab, groups]


def _said(text: str, kind: str, busy: bool) -> list[Any]:
    """Values of everything that `on_run` may change, where only the status does."""
    return [*[gr.skip()] * 9, *_buttons(pictures.status(text, kind), busy), *[gr.skip()] * 2]


def _buttons(status: str, busy: bool) -> list[Any]:
    """The status line, and which of the two buttons can be pressed."""
    return [status, gr.Button(interactive=not busy), gr.Button(interactive=busy)]


def _drawn(
    result: Result, threshold: float | None, opacity: float, position: str = ""
) -> list[Any]:
    """Overlay, legend, scores at a pixel, and the files to download."""
    found = result.at(threshold)
    pixel = pictures.chosen_pixel(found, position)
    files = pictures.save_files(found, result.picture, opacity, result.folder)
    return [
        pictures.overlay(found, opacity, pixel),
        pictures.legend(found),
        pictures.PIXEL_HINT if pixel is None else pictures.pixel_scores(found, *pixel),
        *(gr.DownloadButton(value=str(file), interactive=True) for file in files),
    ]
