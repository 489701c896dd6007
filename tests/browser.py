"""A real browser as a test drives it: headless Chromium over the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

from processes import started
from programs import needs_program

needs_chromium = needs_program("chromium")

MAX_MESSAGE = 64 << 20
"""Octets of one message: a large screenshot."""
QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--mute-audio"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what it asks for by itself
)
UNTIL = """new Promise((done, failed) => {
  const look = () => {
    try { const found = (%s); if (found) done(found); else setTimeout(look, 20); }
    catch (error) { failed(error); }
  };
  look();
})"""


class Page:
    """One page. `complaints` are its errors, and what its policy refused; `requests` its URLs."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        while (text := await self._socket.read_message()) is not None:
            message = json.loads(text)
            match message:
                case {"id": number, "error": error}:
                    self._answers.pop(number).set_exception(AssertionError(error["message"]))
                case {"id": number, "result": result}:
                    self._answers.pop(number).set_result(result)
                case {"method": "Network.requestWillBeSent", "params": params}:
                    self.requests.append(params["request"]["url"])
                case {"method": "Runtime.exceptionThrown" | "Log.entryAdded", "params": params}:
                    self.complaints.append(json.dumps(params))

    async def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.write_message(
            json.dumps({"id": self._number, "method": method, "params": params})
        )
        return await answer

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise's when it has one."""
        told = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until the expression is true; its value."""
        return await self.evaluate(UNTIL % expression)

    async def go(self, url: str) -> None:
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def press(self, key: str) -> None:
        """A key, by the name that its events have."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        codes = {"Enter": 13, "Tab": 9, "Escape": 27}
        code = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, **text, **code)

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def size(self, width: int, height: int, *, phone: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    async def prefer(self, scheme: str) -> None:
        """Light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def screenshot(self, path: Path) -> None:
        told = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(told["data"]))

    async def close(self) -> None:
        self._socket.close()
        await self._reading


@asynccontextmanager
async def chromium(profile: Path, *arguments: str) -> AsyncIterator[Page]:
    """A browser with one empty page. `profile` is a folder of its own."""
    async with started(
        "chromium",
        *QUIET,
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        *arguments,
        "about:blank",
    ) as process:
        line = await process.says("DevTools listening on ws://")
        url = line.rpartition(" ")[2].strip()
        page = await _page_of(url)
        try:
            yield page
        finally:
            await page.close()


async def _page_of(browser_url: str) -> Page:
    """The page that the browser has opened, by way of the browser's own socket."""
    browser = Page(await websocket_connect(browser_url, max_message_size=MAX_MESSAGE))
    try:
        while True:
            targets = (await browser.call("Target.getTargets"))["targetInfos"]
            pages = [target for target in targets if target["type"] == "page"]
            if pages:
                break
    finally:
        await browser.close()
    base = browser_url.partition("/devtools/")[0]
    socket = await websocket_connect(
        f"{base}/devtools/page/{pages[0]['targetId']}", max_message_size=MAX_MESSAGE
    )
    return Page(socket)
