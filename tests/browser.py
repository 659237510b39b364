"""A headless browser, spoken to by its DevTools protocol over a pipe: no package, no port."""

import base64
import io
import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from select import select

import numpy as np
import pytest
from PIL import Image

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    not PROGRAM, reason="neither chromium nor google-chrome is there"
)
LAPTOP, PHONE = (1366, 768), (390, 844)
_FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-pipe",
        "--hide-scrollbars",
    ),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-dev-shm-usage", "--disable-extensions"),
    # whatever a page asks of another machine fails, and is seen to
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_PATIENCE_SECONDS = 60  # a machine may be busy with other tests


class Browser:
    """One page in one browser: go to places, look, press keys, and list what was asked for."""

    def __init__(self, folder: Path) -> None:
        there, self._out = os.pipe()
        self._in, back = os.pipe()

        def lay_pipes():
            os.dup2(there, 103), os.dup2(back, 104)  # out of each other's way first
            os.dup2(103, 3), os.dup2(104, 4)

        self._process = subprocess.Popen(
            [PROGRAM, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=lay_pipes,
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )
        os.close(there), os.close(back)
        self._ids, self._rest, self._session = count(1), b"", None
        self._answers, self.requests, self.console = {}, [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with suppress(OSError, AssertionError):
            self._session = None
            self.call("Browser.close")
        self._process.kill()
        self._process.wait()
        os.close(self._in), os.close(self._out)

    def call(self, method, **params):
        """A command of the protocol, and its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _PATIENCE_SECONDS
        while number not in self._answers:
            assert time.monotonic() < end, f"no answer to {method}"
            self._read(0.2)
        answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer}"
        return answer["result"]

    def _read(self, seconds):
        if not select([self._in], [], [], seconds)[0]:
            return
        data = os.read(self._in, 1 << 20)
        assert data, "the browser has ended"
        *messages, self._rest = (self._rest + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            elif message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message["method"] == "Log.entryAdded":
                self.console.append(message["params"]["entry"]["text"])
            elif message["method"] == "Runtime.exceptionThrown":
                self.console.append(str(message["params"]["exceptionDetails"]))
            elif message["method"] == "Runtime.consoleAPICalled":
                self.console.append(str(message["params"]["args"]))

    def open(self, url, *, size=LAPTOP, dark=False):
        """Go to a page; what was asked for and said before is forgotten."""
        self.requests, self.console = [], []
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=size == PHONE,
        )  # fmt: skip
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def js(self, expression):
        """The value of an expression on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition):
        """Until an expression is true."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while not self.js(condition):
            assert time.monotonic() < end, f"never came: {condition}; {self.console}"
            self._read(0.05)

    def press(self, key):
        """A key, down and up."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def picture(self, path=None):
        """What is shown, (h, w, 3) uint8."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path:
            path.write_bytes(data)
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def overflows(self):
        """Elements that reach beyond the page's width, those in a box that scrolls aside."""
        return self.js(
            """(() => {
            const wide = document.documentElement.clientWidth;
            const page = document.documentElement.scrollWidth > wide ? ["the page"] : [];
            const scrolled = (e) => e.closest(".scroll, .list, .openseadragon-container");
            for (const e of document.querySelectorAll("main *, aside *, header *, footer *")) {
              const box = e.getBoundingClientRect();
              if (box.width > 1 && box.right > wide + 1 && !scrolled(e))
                page.push(e.outerHTML.slice(0, 80));
            }
            return page; })()"""
        )
