"""One Chromium, spoken to over a pipe in its own protocol: no driver to install."""

import fcntl
import json
import os
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--remote-debugging-pipe"),
)


class Page:
    """One page; `complaints` are its errors and what its policy refused."""

    def __init__(self, to: int, back: int) -> None:
        self._to = os.fdopen(to, "wb", buffering=0)
        self._back = os.fdopen(back, "rb")
        self._last = 0
        self._session: str | None = None
        self._seen: list[dict[str, Any]] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def close(self) -> None:
        self._to.close()
        self._back.close()

    def open(self, url: str, *, width: int = 1280, dark: bool = False) -> None:
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Page.navigate", url=url)
        self.wait("document.readyState == 'complete' && location.href != 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 15.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"it never came true: {expression}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press one key, as a person does who has no mouse."""
        code = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32}[key]
        text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        for kind in ("keyDown", "keyUp"):
            said = {"type": kind, "key": key, "windowsVirtualKeyCode": code, **text}
            self._ask("Input.dispatchKeyEvent", **said)

    def picture(self) -> bytes:
        answer = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
        return b64decode(answer["data"])

    @property
    def complaints(self) -> list[dict[str, Any]]:
        self.evaluate("0")  # whatever was said before this answer has now been read
        loud = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"}
        return [event for event in self._seen if event["method"] in loud]

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._seen.append(answer)

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._back.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            text += byte
        message: dict[str, Any] = json.loads(text)
        return message


@contextmanager
def chromium(home: Path, *options: str) -> Iterator[Page]:
    """Start a browser that reads commands from descriptor 3 and answers on 4."""
    there, to = os.pipe()
    back, here = os.pipe()
    # Out of the way of 3 and 4, which the shell is about to fill.
    ours = [fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in (there, here)]
    command = f'exec "$@" 3<&{ours[0]} 4>&{ours[1]}'
    with (home / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command, "bash", PATH, *OPTIONS, *options, f"--user-data-dir={home}"],
            pass_fds=ours,
            stdout=log,
            stderr=log,
        )
    for number in (there, here, *ours):
        os.close(number)
    page = Page(to, back)
    try:
        yield page
    finally:
        page.close()
        process.terminate()
        process.wait(10)
