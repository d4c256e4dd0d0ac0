"""Serve the page: locally unless told otherwise, with all its files in one temporary folder."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from talk2dino.app.page import Page
from talk2dino.config import check_at_least

_REFUSED = "Too many pictures are being uploaded. Try again in a minute."


@dataclass(frozen=True)
class ServerConfig:
    """Where and to whom the page is served."""

    server_name: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for the whole network."""
    server_port: int | None = None
    """Port (default: the first free from 7860)."""
    share: bool = False
    """Public link through Gradio's servers."""
    max_queue: int = 32
    """Requests that may wait; more are told to come back."""
    max_upload_mb: int = 50
    """Of one uploaded file."""
    max_uploads_mb: int = 1000
    """Of all uploads together; the oldest make room."""

    def __post_init__(self) -> None:
        smallest = {"--max_queue": self.max_queue, "--max_upload_mb": self.max_upload_mb}
        check_at_least(1, **smallest)
        if self.max_uploads_mb <= self.max_upload_mb:
            raise ValueError(
                f"--max_uploads_mb must be more than --max_upload_mb ({self.max_upload_mb}), got "
                f"{self.max_uploads_mb}."
            )
        if self.server_port is not None and not 1 <= self.server_port <= 65535:
            raise ValueError(f"--server_port must lie between 1 and 65535, got {self.server_port}.")


@contextmanager
def serve(page: Page, config: ServerConfig) -> Iterator[gr.Blocks]:
    """Run the server inside a `with` block; yields the page, whose `local_url` is its address.

    Uploads, drawn pictures and downloads live in a temporary folder that is removed at the end.

    Raises:
        OSError: the port is taken.
    """
    with (
        tempfile.TemporaryDirectory(prefix="talk2dino-app-") as folder,
        patch.dict(os.environ, GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False"),
    ):
        blocks = page.build()
        max_bytes = config.max_uploads_mb * 2**20
        bound = Middleware(UploadBound, blocks=blocks, folder=Path(folder), max_bytes=max_bytes)
        blocks.queue(max_size=config.max_queue, default_concurrency_limit=1)
        # Fonts of the visitor's system: nothing is fetched from elsewhere.
        theme = gr.themes.Soft(
            primary_hue="indigo",
            neutral_hue="slate",
            radius_size="lg",
            font=["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "sans-serif"],
            font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
        )
        try:
            blocks.launch(
                server_name=config.server_name,
                server_port=config.server_port,
                share=config.share,
                max_file_size=config.max_upload_mb * 2**20,
                app_kwargs={"middleware": [bound]},
                theme=theme,
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
        except OSError as error:
            raise OSError(
                f"port {config.server_port or '7860 and those after it'} cannot be used. Choose "
                "another --server_port."
            ) from error
        try:
            yield blocks
        finally:
            blocks.close(verbose=False)


@dataclass(eq=False)
class UploadBound:
    """A step before Gradio's own, which limits single files only."""

    app: ASGIApp
    blocks: gr.Blocks
    """The page, which knows its uploads."""
    folder: Path
    max_bytes: int
    """Of all uploads together, those that are arriving included."""
    _arriving: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].rstrip("/").endswith("/upload"):
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            await PlainTextResponse("How long is it?", 411)(scope, receive, send)
            return
        if int(length) + self._arriving > self.max_bytes:
            await PlainTextResponse(_REFUSED, 503)(scope, receive, send)
            return
        self._arriving += int(length)
        try:
            self._make_room()
            await self.app(scope, receive, send)
        finally:
            self._arriving -= int(length)

    def _make_room(self) -> None:
        """Remove the oldest of what was uploaded, and of what uploads that broke off left.

        Not the examples: an upload of the same picture under its name is the same file.
        """
        examples = (getattr(block, "keep_in_cache", ()) for block in self.blocks.blocks.values())
        uploads = set(self.blocks.upload_file_set).difference(*examples)
        files = {}
        for path in (*map(Path, uploads), *self.folder.glob("*")):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    files[path] = path.stat()
        kept = self._arriving + sum(state.st_size for state in files.values())
        for path in sorted(files, key=lambda path: files[path].st_mtime):
            if kept <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            kept -= files[path].st_size
