"""Headless Chromium through chromedriver's own HTTP interface (W3C WebDriver): what a reader of a page would do."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of a reference to an element, from the standard
OPTIONS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1250,1000"]


class Browser:
    """One window. Needs Debian's chromium and chromium-driver, or Chrome and its chromedriver."""

    def __init__(self) -> None:
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        driver = shutil.which("chromedriver")
        if not chromium or not driver:
            pytest.skip("no headless browser: apt-get install chromium chromium-driver")
        self.process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
        try:
            line = next(line for line in self.process.stdout if "successfully on port" in line)
            self.url = f"http://127.0.0.1:{line.rsplit(maxsplit=1)[-1].rstrip('.')}/session"
            options = {"goog:chromeOptions": {"binary": chromium, "args": OPTIONS}}
            self.url += "/" + self.call("", capabilities={"alwaysMatch": options})["sessionId"]
        except BaseException:
            self.process.kill()
            raise

    def call(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {body}: {json.load(error)['value']['message']}") from None

    def open(self, page: Path) -> None:
        self.call("/url", url=page.resolve().as_uri())

    def run(self, script: str) -> Any:
        """The value that JavaScript `return`s in the page."""
        return self.call("/execute/sync", script=script, args=[])

    def wait_for(self, script: str) -> Any:
        """As `run`, for a script that passes its value to the function `done`."""
        return self.call("/execute/async", script=f"const done = arguments[0]; {script}", args=[])

    def find(self, selector: str) -> str:
        return "/element/" + self.call("/element", using="css selector", value=selector)[ELEMENT]

    def click(self, selector: str) -> None:
        self.call(self.find(selector) + "/click")

    def type(self, selector: str, text: str) -> None:
        """Replace what an input holds, key by key."""
        element = self.find(selector)
        self.call(element + "/clear")
        self.call(element + "/value", text=text)

    def text(self, selector: str) -> str:
        """What is rendered there, as a reader sees it."""
        return self.run(f"return document.querySelector({json.dumps(selector)}).innerText")

    def device(self, width: int, scheme: str) -> None:
        """Be a screen of so many pixels ("light" or "dark"), a phone's where it is narrow, for the next page."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.developer("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.developer("Emulation.setEmulatedMedia", features=features)

    def screenshot(self) -> bytes:
        """What is on the screen, as a PNG file."""
        return base64.b64decode(self.developer("Page.captureScreenshot", format="png")["data"])

    def developer(self, command: str, **parameters: Any) -> Any:
        return self.call("/goog/cdp/execute", cmd=command, params=parameters)

    def close(self) -> None:
        try:
            request = urllib.request.Request(self.url, method="DELETE")
            urllib.request.urlopen(request, timeout=60).close()
        finally:
            self.process.terminate()
            self.process.wait(timeout=20)
