"""The page: its components, and which handler answers which of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from talk2dino.app import pictures
from talk2dino.app.handlers import (
    Handlers,
    on_begin,
    on_click,
    on_failure,
    on_look,
    on_stop,
    refinement_of,
    threshold_of,
)
from talk2dino.refine.refinement import REFINEMENTS
from talk2dino.segmenter import POOLINGS


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


class Page:
    """Builds the components of one page and connects them with its handlers.

    Args:
        handlers: of all visitors.
        examples: pictures, each with the categories that go with it.
        categories: text of the field of categories when the page opens.
    """

    def __init__(
        self, handlers: Handlers, examples: Sequence[tuple[Path, str]], categories: str
    ) -> None:
        self.handlers, self.models = handlers, handlers.models
        self.first = next(iter(self.models.entries.values()))
        self.examples, self.words = examples, categories

    def build(self) -> gr.Blocks:
        """The whole page."""
        # Files of uploads and displayed pictures live for an hour; nothing is sent to Gradio.
        blocks = UploadsOnly(
            title="Talk2DINO", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True
        )
        with blocks:
            gr.HTML(pictures.header(str(self.models.device)))
            self.notice = gr.HTML(pictures.notice(self.first.notice), elem_id="notice")
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=4, min_width=320, elem_id="ask"):
                    self._build_inputs()
                with gr.Column(scale=6, min_width=320, elem_id="answer"):
                    self._build_outputs()
                with gr.Column(scale=4, min_width=320, elem_id="choose"):
                    self._build_options()
            self.result = gr.State(None)
            self._connect()
        return blocks

    def _build_inputs(self) -> None:
        self.picture = gr.Image(
            label="Picture",
            sources=["upload", "clipboard", "webcam"],
            type="filepath",
            image_mode=None,
            height=300,
            elem_id="picture",
            buttons=[],
        )
        # The examples stand above the field that they fill, next to the picture.
        self.categories = gr.Textbox(
            label="Categories",
            info="Any words, separated by commas; aliases of one after semicolons",
            value=self.words,
            placeholder="cat; kitten, sofa, window",
            max_lines=4,
            elem_id="categories",
            render=False,
        )
        if self.examples:
            gr.HTML('<p class="t2d-hint">Examples</p>')
            with gr.Row(elem_id="examples"):
                for path, words in self.examples:
                    self._build_example(path, words)
        self.categories.render()
        with gr.Row(elem_id="buttons"):
            self.run = gr.Button("Segment", variant="primary", scale=3, elem_id="run")
            self.stop = gr.Button("Stop", scale=1, min_width=80, interactive=False, elem_id="stop")
        self.status = gr.HTML(pictures.NOTHING_YET, elem_id="status")

    def _build_example(self, path: Path, words: str) -> None:
        """A picture to press; gr.Examples has buttons that a screen reader cannot name."""
        example = gr.Button(path.stem, icon=path, scale=0, min_width=0, size="sm")
        kept = example.icon["path"] if example.icon else str(path)
        example.keep_in_cache.add(kept)  # uploads are deleted after a while, this is not
        example.click(
            lambda: [kept, words],
            None,
            [self.picture, self.categories],
            api_visibility="private",
            show_progress="hidden",
            concurrency_id="light",
            concurrency_limit=4,
        )

    def _build_options(self) -> None:
        first = self.first
        with gr.Group(elem_id="options"):
            self.model = gr.Dropdown(
                list(self.models.entries), value=first.name, label="Model", elem_id="model"
            )
            self.refine = gr.CheckboxGroup(
                list(REFINEMENTS), label="Refine", elem_id="refine", **refinement_of(first)
            )
            self.background = gr.Checkbox(
                False,
                label="Background",
                info="Pixels below the threshold belong to no category",
                elem_id="background",
            )
            self.threshold = gr.Slider(
                **threshold_of(first),
                step=0.005,
                label="Background threshold",
                visible=False,
                buttons=[],
                elem_id="threshold",
            )
            self.opacity = gr.Slider(
                0, 1, value=0.5, step=0.05, label="Opacity", buttons=[], elem_id="opacity"
            )
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
                    show_label=False,
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_id="overlay",
                    alt_text="The picture in the colours of its categories",
                )
            with gr.Tab("Heat maps", elem_id="heat-tab"):
                self.scale = gr.HTML(elem_id="scale")
                self.heat = _gallery("Heat maps", "heat", columns=3)
            with gr.Tab("Groups", visible=False, elem_id="groups-tab") as self.groups_tab:
                gr.HTML(pictures.GROUPS_HINT)
                self.groups = _gallery("Groups", "groups", columns=2)
        with gr.Row(elem_id="findings"):
            with gr.Column(min_width=260):
                gr.HTML("<h2>Areas</h2>")
                self.legend = gr.HTML(pictures.NO_AREAS, elem_id="areas")
            with gr.Column(min_width=260):
                gr.HTML("<h2>Scores at a pixel</h2>")
                self.position = gr.Textbox(
                    label="Column, row",
                    placeholder="click the picture, or type: 120, 80",
                    max_lines=1,
                    elem_id="position",
                )
                self.pixel = gr.HTML(pictures.PIXEL_HINT, elem_id="pixel")
        with gr.Row(elem_id="downloads"):
            self.mask_file = gr.DownloadButton(
                "Download mask", interactive=False, elem_id="mask-file"
            )
            self.overlay_file = gr.DownloadButton(
                "Download overlay", interactive=False, elem_id="overlay-file"
            )

    def _connect(self) -> None:
        shown = [self.overlay, self.legend, self.pixel, self.mask_file, self.overlay_file]
        look = [self.result, self.threshold, self.opacity, self.position, self.model]
        buttons = [self.status, self.run, self.stop]
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        light: dict[str, Any] = {**hidden, "concurrency_id": "light", "concurrency_limit": 4}
        begun = gr.on(
            [self.run.click, self.categories.submit],
            on_begin,
            None,
            buttons,
            queue=False,  # at once: while waiting for a turn, Stop must work
            **hidden,
        )
        running = begun.then(
            self.handlers.on_run,
            [
                *(self.opacity, self.picture, self.categories, self.model),
                *(self.background, self.threshold, self.refine, self.pooling),
            ],
            [
                *(*shown, self.heat, self.scale, self.position, self.result),
                *(*buttons, self.groups_tab, self.groups),
            ],
            preprocess=False,  # Gradio would open the file itself, and hide what is wrong with it
            api_visibility="private",
            show_progress_on=self.overlay,
            concurrency_limit=1,
            trigger_mode="once",
        )
        running.failure(on_failure, self.status, buttons, queue=False, **hidden)
        self.stop.click(on_stop, None, buttons, cancels=[running], queue=False, **hidden)
        for control in (self.threshold, self.opacity, self.position):
            control.input(  # not when another model brings its own threshold
                on_look, look, [*shown, self.status], trigger_mode="always_last", **light
            )
        self.overlay.select(
            on_click,
            [self.result, self.threshold, self.opacity, self.model],
            [*shown, self.status, self.position],
            **light,
        )
        self.model.change(
            self.handlers.on_model,
            self.model,
            [self.notice, self.threshold, self.refine],
            **light,
        )
        self.background.change(
            lambda on: gr.Slider(visible=on), self.background, self.threshold, **light
        )


def _gallery(label: str, name: str, columns: int) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=columns,
        object_fit="contain",
        height="auto",
        buttons=["fullscreen"],
        interactive=False,
        elem_id=name,
    )
