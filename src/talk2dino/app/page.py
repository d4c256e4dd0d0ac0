"""The page: its components, and what happens when they are used."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from talk2dino.app import pictures
from talk2dino.app.pictures import PARTS
from talk2dino.app.request import Entry, Limits, Models, Result, Results, segment
from talk2dino.refine.refinement import REFINEMENTS
from talk2dino.segmenter import POOLINGS

logger = logging.getLogger(__name__)

USER_ERRORS = (ValueError, OSError, RuntimeError, MemoryError)
BUG = "Something went wrong here; the terminal of the server says what."
WAITING = "Waiting for a turn …"
REFUSED = "Too many requests are waiting. Try again in a minute."
STOPPED = "Stopped. Press Segment to start again."
PIXEL_HINT = PARTS.hint("No pixel chosen.")

HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
LIGHT: dict[str, Any] = {**HIDDEN, "concurrency_id": "light", "concurrency_limit": 4}
"""Settings of handlers that show no progress, and of those that do not wait for a model."""
LOOK: dict[str, Any] = {"show_label": False, "interactive": False, "buttons": ["fullscreen"]}
"""Of pictures that are only looked at."""

Updates = dict[Any, Any]
"""Component -> its new value; what is not in it stays."""


class UploadsOnly(gr.Blocks):
    """A page that takes files as uploads only.

    Gradio accepts only uploaded files from its visitors, but also addresses, which the server
    would then fetch: any amount, whatever the limit of uploads. The page itself sends none.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *others: Any) -> Any:
        """Gradio's step from what a visitor sent to the handler's arguments."""
        if has_address(inputs):
            raise gr.Error("Files are taken as uploads only, not from an address.")
        return await super().preprocess_data(block_fn, inputs, *others)


def has_address(sent: Any) -> bool:
    """Whether JSON describes a file whose path is an address, such as https://..."""
    if isinstance(sent, dict):
        return "://" in str(sent.get("path")) or has_address(list(sent.values()))
    return isinstance(sent, list) and any(has_address(value) for value in sent)


@dataclass(eq=False)
class Page:
    """One page: once built, its components are attributes; handlers take and give their values."""

    models: Models
    limits: Limits
    examples: Sequence[tuple[Path, str]] = ()
    """Pictures, each with the categories that go with it."""
    words: str = ""
    """Text of the field of categories when the page opens."""

    def build(self) -> gr.Blocks:
        self.results, self.first = Results(), next(iter(self.models.entries.values()))
        # Files of uploads and displayed pictures live for an hour; nothing is sent to Gradio.
        blocks = UploadsOnly(
            title="Talk2DINO", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True
        )
        with blocks:
            gr.HTML(PARTS.header(self.models.device))
            self.notice = gr.HTML(PARTS.notice(self.first.notice))
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=4, min_width=320, elem_id="ask"):
                    self._build_inputs()
                with gr.Column(scale=6, min_width=320, elem_id="answer"):
                    self._build_outputs()
                with gr.Column(scale=4, min_width=320, elem_id="choose"):
                    self._build_options()
            self.result = gr.State(None)
            for name, part in vars(self).items():
                if isinstance(part, gr.blocks.Block):  # what tests and the style sheet call it
                    part.elem_id = name.replace("_", "-")
            self._connect()
        return blocks

    def _build_inputs(self) -> None:
        self.picture = gr.Image(
            label="Picture",
            sources=["upload", "clipboard", "webcam"],
            type="filepath",
            image_mode=None,
            height=300,
            buttons=[],
        )
        # The examples stand above the field that they fill, next to the picture.
        self.categories = gr.Textbox(
            label="Categories",
            info="Any words, separated by commas; aliases of one after semicolons",
            value=self.words,
            placeholder="cat; kitten, sofa, window",
            max_lines=4,
            render=False,
        )
        if self.examples:
            gr.HTML(PARTS.hint("Examples"))
            with gr.Row(elem_id="examples"):
                for path, words in self.examples:
                    self._build_example(path, words)
        self.categories.render()
        with gr.Row(elem_id="buttons"):
            self.run = gr.Button("Segment", variant="primary", scale=3)
            self.stop = gr.Button("Stop", scale=1, min_width=80, interactive=False)
        self.status = gr.HTML(
            PARTS.status("Choose a picture, name what may be in it, and press Segment."),
        )

    def _build_example(self, path: Path, words: str) -> None:
        """A picture to press; gr.Examples has buttons that a screen reader cannot name."""
        example = gr.Button(path.stem, icon=path, scale=0, min_width=0, size="sm")
        kept = example.icon["path"] if example.icon else str(path)
        example.keep_in_cache.add(kept)  # uploads are deleted after a while, this is not
        example.click(lambda: [kept, words], None, [self.picture, self.categories], **LIGHT)

    def _build_options(self) -> None:
        first = self.first
        with gr.Group(elem_id="options"):
            self.model = gr.Dropdown(list(self.models.entries), value=first.name, label="Model")
            self.refine = gr.CheckboxGroup(
                list(REFINEMENTS), label="Refine", **_refinement_of(first)
            )
            self.background = gr.Checkbox(
                False,
                label="Background",
                info="Pixels below the threshold belong to no category",
            )
            self.threshold = gr.Slider(
                **_threshold_of(first),
                step=0.005,
                label="Background threshold",
                visible=False,
                buttons=[],
            )
            self.opacity = gr.Slider(0, 1, value=0.5, step=0.05, label="Opacity", buttons=[])
            with gr.Accordion("Aliases", open=False, elem_id="more"):
                self.pooling = gr.Radio(
                    list(POOLINGS),
                    value=POOLINGS[0],
                    label="Several words of a category",
                    info="max: the best one counts; lse: all do",
                )

    def _build_outputs(self) -> None:
        with gr.Tabs():
            with gr.Tab("Overlay", elem_id="overlay-tab"):
                self.overlay = gr.Image(
                    label="Overlay",
                    alt_text="The picture in the colours of its categories",
                    **LOOK,
                )
            with gr.Tab("Heat maps", elem_id="heat-tab"):
                self.scale = gr.HTML()
                self.heat = gr.Gallery(
                    label="Heat maps", columns=3, object_fit="contain", height="auto", **LOOK
                )
            with gr.Tab("Groups", visible=False) as self.groups_tab:
                gr.HTML(
                    PARTS.hint("What belongs together to the model, before it looks for words.")
                )
                self.groups = gr.Gallery(
                    label="Groups", columns=2, object_fit="contain", height="auto", **LOOK
                )
        with gr.Row(elem_id="findings"):
            with gr.Column(min_width=260):
                gr.HTML("<h2>Areas</h2>")
                self.areas = gr.HTML(PARTS.hint("Nothing segmented yet."))
            with gr.Column(min_width=260):
                gr.HTML("<h2>Scores at a pixel</h2>")
                self.position = gr.Textbox(
                    label="Column, row",
                    placeholder="click the picture, or type: 120, 80",
                    max_lines=1,
                )
                self.pixel = gr.HTML(PIXEL_HINT)
        with gr.Row(elem_id="downloads"):
            self.mask_file = gr.DownloadButton("Download mask", interactive=False)
            self.overlay_file = gr.DownloadButton("Download overlay", interactive=False)

    def _connect(self) -> None:
        drawn = [self.overlay, self.areas, self.pixel, self.mask_file, self.overlay_file]
        buttons = [self.status, self.run, self.stop]
        look = [self.result, self.threshold, self.opacity, self.position, self.model]
        begun = gr.on(
            [self.run.click, self.categories.submit],
            lambda: self._said(WAITING, "busy"),
            None,
            buttons,
            queue=False,  # at once: while waiting for a turn, Stop must work
            **HIDDEN,
        )
        running = begun.then(
            self.on_run,
            [
                *(self.opacity, self.picture, self.categories, self.model),
                *(self.background, self.threshold, self.refine, self.pooling),
            ],
            [
                *(*drawn, *buttons, self.heat, self.scale, self.position, self.result),
                *(self.groups_tab, self.groups),
            ],
            preprocess=False,  # Gradio would open the file itself, and hide what is wrong with it
            api_visibility="private",
            show_progress_on=self.overlay,
            concurrency_limit=1,
            trigger_mode="once",
        )
        running.failure(self.on_failure, self.status, buttons, queue=False, **HIDDEN)
        self.stop.click(
            lambda: self._said(STOPPED), None, buttons, cancels=[running], queue=False, **HIDDEN
        )
        for control in (self.threshold, self.opacity, self.position):
            control.input(  # not when another model brings its own threshold
                self.on_look, look, [*drawn, self.status], trigger_mode="always_last", **LIGHT
            )
        self.overlay.select(self.on_click, look, [*drawn, self.status, self.position], **LIGHT)
        chosen = [self.notice, self.threshold, self.refine]
        self.model.change(self.on_model, self.model, chosen, **LIGHT)
        self.background.change(
            lambda on: gr.Slider(visible=on), self.background, self.threshold, **LIGHT
        )

    def on_run(self, opacity: float, *asked: Any) -> Iterator[Updates]:
        """Segment; shows what is being done, then the result or what was wrong."""
        try:
            for step in segment(self.models, self.limits, *asked):
                if isinstance(step, str):
                    yield self._said(step, "busy")
                    continue
                self.results.add(step)
                heat, scale = pictures.heat_of(step)
                groups = [(picture, f"stage {n}") for n, picture in enumerate(step.groups, start=1)]
                yield {
                    **self._drawn(step, None, opacity),
                    **self._said(step.text, "done"),
                    self.heat: heat,
                    self.scale: scale,
                    self.position: "",
                    self.result: step,
                    self.groups_tab: gr.Tab(visible=bool(groups)),
                    self.groups: groups,
                }
        except USER_ERRORS as error:
            yield self._said(str(error) or type(error).__name__, "error")
        except Exception:
            logger.exception("a request failed")
            yield self._said(BUG, "error")

    def on_failure(self, shown_status: str) -> Updates:
        """Gradio did not take a request, because too many wait, or cut it off."""
        stopped = STOPPED in shown_status  # by the visitor, who has been told
        return {self.status: gr.skip()} if stopped else self._said(REFUSED, "error")

    def on_look(
        self,
        result: Result | None,
        threshold: float,
        opacity: float,
        position: str,
        model: str,
    ) -> Updates:
        """Draw the kept result again, as the sliders and the position say.

        The threshold is that of `model`, the chosen one: a result of another keeps its own.
        """
        if result is None:
            return {self.status: gr.skip()}
        try:
            own = model == result.model
            return self._drawn(result, threshold if own else None, opacity, position)
        except USER_ERRORS as error:
            return {self.status: PARTS.status(str(error), "error")}

    def on_click(
        self,
        result: Result | None,
        threshold: float,
        opacity: float,
        _: str,
        model: str,
        event: gr.SelectData,
    ) -> Updates:
        """Show the scores at the pixel that was clicked."""
        times = pictures.enlargement(result.picture.image) if result is not None else 1
        position = ", ".join(str(value // times) for value in event.index)
        looked = self.on_look(result, threshold, opacity, position, model)
        return {**looked, self.position: position}

    def on_model(self, name: str) -> Updates:
        """Say what there is to know about the chosen model, and offer what it can."""
        entry = self.models.entry(name)
        return {
            self.notice: PARTS.notice(entry.notice),
            self.threshold: gr.Slider(**_threshold_of(entry)),
            self.refine: gr.CheckboxGroup(**_refinement_of(entry)),
        }

    def _said(self, text: str, kind: str = "info") -> Updates:
        """The status line, and which of the two buttons can be pressed."""
        busy = kind == "busy"
        return {
            self.status: PARTS.status(text, kind),
            self.run: gr.Button(interactive=not busy),
            self.stop: gr.Button(interactive=busy),
        }

    def _drawn(
        self, result: Result, threshold: float | None, opacity: float, position: str = ""
    ) -> Updates:
        found = result.at(threshold)
        pixel = pictures.chosen_pixel(found, position)
        files = pictures.save_files(found, result.picture, opacity, result.folder)
        mask_file, overlay_file = (
            gr.DownloadButton(value=str(file), interactive=True) for file in files
        )
        return {
            self.overlay: pictures.overlay(found, opacity, pixel),
            self.areas: pictures.legend(found),
            self.pixel: PIXEL_HINT if pixel is None else pictures.pixel_scores(found, *pixel),
            self.mask_file: mask_file,
            self.overlay_file: overlay_file,
        }


def _threshold_of(entry: Entry) -> dict[str, Any]:
    """The slider of background thresholds as a model needs it."""
    lowest, highest = entry.rules.thresholds
    info = None if entry.rules.redraws else "Press Segment to apply it"
    return {"minimum": lowest, "maximum": highest, "value": entry.rules.threshold, "info": info}


def _refinement_of(entry: Entry) -> dict[str, Any]:
    """The switches of refinements as a model needs them."""
    refines = entry.rules.refines
    able = refines is not None
    info = "Scores that follow the picture" if able else "This model has no refinement"
    return {"value": list(refines or ()), "interactive": able, "info": info}
