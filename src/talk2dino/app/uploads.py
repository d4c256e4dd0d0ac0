"""The sum of what visitors upload stays below a bound: the oldest files go."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_REFUSED = "Too many pictures are being uploaded. Try again in a minute."


class UploadBound:
    """A step before Gradio's own, which limits single files only.

    Args:
        app: what answers.
        blocks: the page, which knows its uploads.
        folder: where they are.
        max_bytes: of all uploads together, those that are arriving included.
    """

    def __init__(self, app: ASGIApp, blocks: gr.Blocks, folder: Path, max_bytes: int) -> None:
        self.app, self._blocks, self._folder = app, blocks, folder
        self._max_bytes = max_bytes
        self._arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].rstrip("/").endswith("/upload"):
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            await PlainTextResponse("How long is it?", 411)(scope, receive, send)
            return
        if int(length) + self._arriving > self._max_bytes:
            await PlainTextResponse(_REFUSED, 503)(scope, receive, send)
            return
        self._arriving += int(length)
        try:
            self._make_room()
            await self.app(scope, receive, send)
        finally:
            self._arriving -= int(length)

    def _make_room(self) -> None:
        files = sorted(self._files(), key=lambda entry: entry[1].st_mtime)
        kept = sum(state.st_size for _, state in files)
        for path, state in files:
            if kept + self._arriving <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            kept -= state.st_size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """What was uploaded, and what is left of uploads that were broken off."""
        for path in (*map(Path, self._blocks.upload_file_set), *self._folder.glob("*")):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    yield path, path.stat()
