"""Serve the page: locally unless told otherwise, with all its files in one temporary folder."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from talk2dino.app.handlers import Service
from talk2dino.app.inputs import Limits
from talk2dino.app.models import Models
from talk2dino.app.page import Opening, Page
from talk2dino.app.results import Results
from talk2dino.app.uploads import UploadBound

_SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "sans-serif")
_MONOSPACE = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")
_ENVIRONMENT = ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")


@dataclass(frozen=True)
class ServerConfig:
    """Where and to whom the page is served."""

    name: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for the whole network."""
    port: int | None = None
    """None: the first free one from 7860."""
    share: bool = False
    """A public link through Gradio's servers."""
    max_queue: int = 32
    """Requests that may wait; more are told to come back."""
    max_upload_mb: int = 50
    """Size of one uploaded file."""
    max_uploads_mb: int = 1000
    """Size of all uploaded files together; the oldest make room."""


@contextmanager
def serve(
    models: Models, limits: Limits, opening: Opening, config: ServerConfig
) -> Iterator[gr.Blocks]:
    """Run the server inside a `with` block; yields the page, whose `local_url` is its address.

    Uploads, drawn pictures and downloads live in a temporary folder that is removed at the end.

    Raises:
        OSError: the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="talk2dino-app-") as folder, _environment(folder):
        results = Results(Path(folder) / "results")
        blocks = Page(Service(models, results, limits), opening).build()
        _check_port(config.port)
        max_bytes = config.max_uploads_mb * 2**20
        bound = Middleware(UploadBound, blocks=blocks, folder=Path(folder), max_bytes=max_bytes)
        blocks.queue(max_size=config.max_queue, default_concurrency_limit=1)
        blocks.launch(
            server_name=config.name,
            server_port=config.port,
            share=config.share,
            max_file_size=config.max_upload_mb * 2**20,
            app_kwargs={"middleware": [bound]},
            theme=_theme(),
            css=(Path(__file__).parent / "style.css").read_text(encoding="utf-8"),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            state_session_capacity=1000,
            prevent_thread_lock=True,
            quiet=True,
        )
        try:
            yield blocks
        finally:
            blocks.close(verbose=False)


def _check_port(port: int | None) -> None:
    """Raise OSError if a port that was asked for cannot be listened at; Gradio looks likewise."""
    if port is None:
        return
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except OSError as error:
            raise OSError(
                f"port {port} cannot be used ({error.strerror}). Choose another --server_port, or "
                "leave it out for the first free one from 7860."
            ) from error


def _theme() -> gr.themes.Base:
    """Fonts of the visitor's system: nothing is fetched from elsewhere."""
    return gr.themes.Soft(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="lg",
        font=list(_SYSTEM_FONTS),
        font_mono=list(_MONOSPACE),
    )


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """Gradio reads these from the environment; they are as before after the block."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(dict(zip(_ENVIRONMENT, (folder, "False"), strict=True)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
