"""A headless Chromium, spoken to in plain WebDriver: no package is needed, only Debian's two."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
)
KEYS = {"down": "\ue015", "up": "\ue013", "left": "\ue012", "right": "\ue014", "end": "\ue010"}


def missing() -> str | None:
    """Why there is no browser here, or None."""
    gone = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"needs {' and '.join(gone)} (Debian: chromium, chromium-driver)" if gone else None


class Browser:
    """One window. Use it in a `with` statement."""

    def __init__(self, width: int = 1440, height: int = 900) -> None:
        self._folder = tempfile.mkdtemp(prefix="chromium-")
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._driver.stdout is not None
        self._base = ""
        for line in self._driver.stdout:
            if "successfully on port" in line:
                port = int(line.rsplit("port", 1)[1].strip(" .\n"))
                self._base = f"http://127.0.0.1:{port}"
                break
        arguments = [*FLAGS, f"--user-data-dir={self._folder}", f"--window-size={width},{height}"]
        options = {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self._session = ""
        answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self._session = f"/session/{answer['sessionId']}"
        self.size(width, height)
        self.open("about:blank")
        self.requests()  # of the browser's own first page

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(10)
            assert self._driver.stdout is not None
            self._driver.stdout.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def open(self, page: str | Path) -> None:
        self._call("POST", "/url", {"url": page.as_uri() if isinstance(page, Path) else page})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns; it sees `arguments`."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def click(self, selector: str, place: int = 0) -> None:
        found = self._call("POST", "/elements", {"using": "css selector", "value": selector})
        [(_, element)] = found[place].items()
        self._call("POST", f"/element/{element}/click", {})

    def press(self, *keys: str) -> None:
        for key in keys:
            typed = KEYS.get(key, key)
            actions = [{"type": "keyDown", "value": typed}, {"type": "keyUp", "value": typed}]
            source = {"type": "key", "id": "keyboard", "actions": actions}
            self._call("POST", "/actions", {"actions": [source]})

    def point(self, x: int, y: int) -> None:
        """Move the mouse."""
        move = {"type": "pointerMove", "duration": 0, "x": x, "y": y, "origin": "viewport"}
        source = {"type": "pointer", "id": "mouse", "actions": [move]}
        self._call("POST", "/actions", {"actions": [source]})

    def prefer(self, scheme: str) -> None:
        """The colour scheme that the reader's system asks for."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def size(self, width: int, height: int) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self, kind: str = "browser") -> list[dict[str, Any]]:
        return self._call("POST", "/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """Addresses asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        url = self._base + self._session + path
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            value = json.loads(error.read())["value"]
            raise AssertionError(f"{value['error']}: {value['message'].splitlines()[0]}") from None


def until(condition: Any, seconds: float = 5.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
