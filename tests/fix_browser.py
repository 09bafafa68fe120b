"""A real browser, for the pages that people look at.

Where the program is missing, the tests that use it are deselected, and pytest's
header says so. Chromium is spoken to through a pipe, in
the protocol of its developer tools
(https://chromedevtools.github.io/devtools-protocol/), because the pages run no
script and could not say themselves how they look.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import servers

__all__ = ["Browser", "artefacts", "browser"]

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--remote-debugging-pipe",
)

# The browser reads descriptor 3 and writes descriptor 4.
_EXEC = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD_CLOEXEC, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page of a headless Chromium.

    Args:
        reader: What the browser says, messages ended by a zero byte.
        writer: File descriptor to which messages go.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: int) -> None:
        self._reader = reader
        self._writer = writer
        self._last = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a method of the protocol; note the events that come before it ends."""
        self._last += 1
        message: dict[str, Any] = {
            "id": self._last,
            "method": method,
            "params": parameters,
        }
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = await self._next()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    async def _next(self) -> dict[str, Any]:
        data = await self._reader.readuntil(b"\0")
        message: dict[str, Any] = json.loads(data[:-1])
        if "method" in message:
            self.events.append(message)
        return message

    async def begin(self) -> None:
        """Take hold of a page."""
        target = await self.call("Target.createTarget", url="about:blank")
        session = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = session["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")

    async def open(
        self, page: Path | str, *, width: int, dark: bool = False, media: str = ""
    ) -> None:
        """Show a file or address at that width, as a telephone if it is narrow."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=2 if width < 500 else 1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events.clear()
        url = page if isinstance(page, str) else page.as_uri()
        await self.call("Page.navigate", url=url)
        await self.loaded()

    async def loaded(self) -> None:
        """Wait until a page has loaded since the events were cleared."""
        while not any(one["method"] == "Page.loadEventFired" for one in self.events):
            await self._next()

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        found = await self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def press_enter(self) -> None:
        """Press the key Enter."""
        await self._press("Enter", 13, "\r")

    async def press_tab(self) -> str:
        """Press the key Tab; return the tag and the text of what has the focus."""
        await self._press("Tab", 9, "")
        found: str = await self.evaluate(
            "(e => e.tagName + ' ' + (e.innerText || e.name || '').slice(0, 40))"
            "(document.activeElement)"
        )
        return found

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def _press(self, key: str, code: int, text: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                text=text if kind == "keyDown" else "",
            )

    async def shoot(self, file: Path) -> bytes:
        """Write a picture of the whole page; return it."""
        shot = await self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True
        )
        data = base64.b64decode(shot["data"])
        await asyncio.to_thread(file.write_bytes, data)
        return data

    def refused(self) -> int:
        """Return how many requests the page's policy has refused."""
        return sum(
            one["params"].get("blockedReason") == "csp"
            for one in self.events
            if one["method"] == "Network.loadingFailed"
        )

    def requests(self) -> list[str]:
        """Return the addresses that the page has asked for since it was opened."""
        return [
            one["params"]["request"]["url"]
            for one in self.events
            if one["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture
def artefacts() -> Path:
    """Give the folder for what a person may want to look at after the tests."""
    named = os.environ.get("FM_STORAGE_TEST_ARTEFACTS")
    folder = Path(named or Path(__file__).parent.parent / "build" / "artefacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    """Give a headless Chromium with one empty page."""
    program = servers.find_browser()
    assert program is not None
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _EXEC,
        str(to_read),
        str(from_write),
        program,
        *_OPTIONS,
        f"--user-data-dir={tmp_path / 'profile'}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        pass_fds=(to_read, from_write),
        env={**os.environ, "HOME": str(tmp_path)},
    )
    os.close(to_read)
    os.close(from_write)
    reader = asyncio.StreamReader(limit=1 << 28)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_read, "rb")
    )
    made = Browser(reader, to_write)
    try:
        await made.begin()
        yield made
    finally:
        os.close(to_write)  # which ends the browser
        transport.close()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()
