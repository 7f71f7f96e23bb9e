"""Headless Chromium by its DevTools protocol: enough to open a page, ask it, press keys and take its picture."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> str | None:
    """The path of a Chromium on this machine, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A tab. ``console`` collects errors and warnings, ``requests`` what the page asked for beyond itself."""

    START_S = 60

    def __init__(self, profile: Path):
        command = [
            find_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
            "--remote-debugging-address=127.0.0.1", f"--user-data-dir={profile}", "--no-first-run",
            "--disable-background-networking", "--disable-extensions", "--hide-scrollbars", "about:blank",
        ]  # fmt: skip
        self.log = open(profile.parent / "chromium.log", "w+")  # noqa: SIM115 -- it stays open until close()
        self.process = subprocess.Popen(command, stderr=self.log, stdout=self.log, start_new_session=True)
        port = self._wait_for_port(profile)
        self.stack = contextlib.ExitStack()
        self.socket = self.stack.enter_context(connect(f"ws://127.0.0.1:{port}", max_size=None, proxy=None))
        self.number, self.session = 0, None
        self.console: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def _wait_for_port(self, profile: Path) -> str:
        deadline = time.monotonic() + self.START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            file = profile / "DevToolsActivePort"
            if file.exists() and len(lines := file.read_text().splitlines()) == 2:
                return "".join(lines)
            time.sleep(0.05)
        self.log.seek(0)
        raise RuntimeError(f"Chromium did not start: {self.log.read()[-2000:]}")

    def send(self, method: str, **params) -> dict:
        """Call a method of the protocol and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.console.append(json.dumps(params["exceptionDetails"])[:2000])
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.console.append(json.dumps(params["args"])[:2000])
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.console.append(params["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not re.match(r"data:|blob:|about:", url):
                self.requests.append(url)

    def ask(self, expression: str):
        """The value of a JavaScript expression; a promise is awaited."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:2000])
        return result["result"].get("value")

    def size(self, width: int, height: int, mobile: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def dark(self, on: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def open(self, path: Path, timeout: float = 30) -> None:
        """Load a file and wait until the report says that it is drawn."""
        self.console.clear(), self.requests.clear()
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait(f"location.href.startsWith({json.dumps(path.resolve().as_uri())})"
                  " && document.documentElement?.dataset.ready === 'yes'", timeout)  # fmt: skip

    def wait(self, expression: str, timeout: float = 10) -> None:
        """Until ``expression`` is true; AssertionError with what the console says if it does not become so."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.ask(expression):
                return
            time.sleep(0.05)
        raise AssertionError(f"{expression} did not become true; console: {self.console}")

    def press(self, key: str, shift: bool = False) -> None:
        code = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def picture(self, path: Path, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        clip = {}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        try:
            self.session = None
            self.send("Browser.close")
            self.stack.close()
            self.process.wait(10)
        except Exception:
            self.process.kill()
            self.process.wait()
        self.log.close()
