"""Takes the documentation's picture of TensorBoard.

TensorBoard keeps its settings in the browser, so Chromium has to be controlled. The DevTools
protocol over pipes does this and needs no package:
https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The pinned cards, and how many lines each has: training, and for the first two evaluation.
_CARDS = {
    "accuracy": 2,
    "loss": 2,
    "learning_rate": 1,
    "gradient_norm": 1,
    "images_per_second": 1,
    "steps_per_second": 1,
}
_SETTINGS = {
    "timeSeriesSettingsPaneOpened": False,
    "stepSelectorEnabled": False,
    "ignoreOutliers": False,
    "scalarSmoothing": 0,
    "theme": "light",
}
_SIZE = {"width": 1600, "height": 836, "deviceScaleFactor": 1, "mobile": False}  # pixels
_LIMIT = 60  # seconds for an answer of Chromium, and for drawing the page
# Reads DevTools messages from descriptor 3 and writes them to 4.
_ON_PIPES = 'exec "$@" 3<&0 4>&1 0</dev/null 1>&2'
# Lists what the page has not drawn by its next frame.
_MISSING = """
new Promise(resolve => requestAnimationFrame(() => {
  const lines = {};
  for (const card of document.querySelectorAll("metrics-pinned-view card-view")) {
    const paths = [...card.querySelectorAll("line-chart .series-view > svg > path")];
    const tag = card.querySelector(".tag")?.textContent.trim();
    lines[tag] = paths.filter(path => path.getAttribute("d")).length;
  }
  const missing = Object.keys(CARDS).filter(tag => lines[tag] !== CARDS[tag]);
  const icons = [...document.querySelectorAll("mat-icon")];
  if (!icons.every(icon => icon.querySelector("svg"))) missing.push("icons");
  if (document.fonts.status !== "loaded") missing.push("fonts");
  resolve(missing);
}))
""".replace("CARDS", json.dumps(_CARDS))


class PictureError(Exception):
    """The picture cannot be taken; the message is one line."""


class _Page:
    """A page of a Chromium process, whose stderr is in the file `log`.

    Every method raises PictureError if Chromium ends, does not answer, or answers with an error.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._requests, self._answers, self._log = process.stdin, process.stdout, log
        self._received = b""
        self._last_id = 0
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol, and returns its result."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters, **self._session}
        with contextlib.suppress(BrokenPipeError):  # reading reports that Chromium ended
            self._requests.write(json.dumps(message).encode() + b"\0")
        answer: dict[str, Any] = {}
        while answer.get("id") != self._last_id:  # it is an event
            answer = self._read(method)
        if "error" in answer:
            raise PictureError(f"Chromium refuses {method}: {answer['error']['message']}")
        return answer["result"]

    def evaluate(self, promise: str) -> Any:
        """Returns the value with which a JavaScript promise resolves."""
        answer = self.call(
            "Runtime.evaluate", expression=promise, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise PictureError(f"JavaScript failed: {answer['result'].get('description')}")
        return answer["result"].get("value")

    def _read(self, method: str) -> dict[str, Any]:
        while b"\0" not in self._received:
            if not select.select([self._answers], [], [], _LIMIT)[0]:
                raise PictureError(f"Chromium did not answer {method} within {_LIMIT} s")
            part = self._answers.read(1 << 16)
            if not part:
                raise PictureError(f"Chromium ended at {method}: {_last_line(self._log)}")
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "no message")


def _stop(process: subprocess.Popen[Any]) -> None:
    process.terminate()  # it ends the processes that it started
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()


@contextlib.contextmanager
def _chromium() -> Iterator[_Page]:
    """Runs Chromium with a temporary profile."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise PictureError("the picture needs Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        log = Path(profile) / "stderr.txt"
        options = ("--headless", "--no-sandbox", "--hide-scrollbars", "--remote-debugging-pipe")
        command = [program, *options, f"--user-data-dir={profile}"]
        with (
            log.open("wb") as stderr,
            subprocess.Popen(
                ["sh", "-c", _ON_PIPES, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | {"TMPDIR": profile},  # it leaves files there
                bufsize=0,
            ) as process,
        ):
            try:
                yield _Page(process, log)
            finally:
                _stop(process)


@contextlib.contextmanager
def _tensorboard(run: Path) -> Iterator[str]:
    """Runs TensorBoard, and gives its address once it has read the run."""
    flags = ("--port=0", "--load_fast=false", "--reload_task=blocking", "--reload_interval=0")
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={run}", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = "no message"
            for line in process.stderr:
                if found := re.search(r"TensorBoard \S+ at (http\S+)", line):
                    yield found[1]
                    return
            raise PictureError(f"TensorBoard did not start: {line.strip()}")
        finally:
            _stop(process)


def take_picture(run: Path, to: Path) -> None:
    """Writes a picture of TensorBoard that shows a run, as PNG.

    Raises:
        PictureError: Chromium is not installed, a program fails, or a curve is not drawn in time.
    """
    pinned = json.dumps([{"plugin": "scalars", "tag": tag} for tag in _CARDS])
    # With forceSVG, a line is an element of the page, which _MISSING finds.
    query = urllib.parse.urlencode({"pinnedCards": pinned, "smoothing": 0, "forceSVG": "true"})
    settings = json.dumps(json.dumps(_SETTINGS))
    with _tensorboard(run) as address, _chromium() as page:
        page.call("Emulation.setDeviceMetricsOverride", **_SIZE)
        page.call("Page.enable")
        page.call(  # before TensorBoard's own scripts
            "Page.addScriptToEvaluateOnNewDocument",
            source=f"localStorage.setItem('_tb_global_settings', {settings})",
        )
        page.call("Page.navigate", url=f"{address}?{query}#timeseries")
        end = time.monotonic() + _LIMIT
        while missing := page.evaluate(_MISSING):
            if time.monotonic() > end:
                raise PictureError(
                    f"TensorBoard did not draw within {_LIMIT} s: {', '.join(missing)}"
                )
        to.write_bytes(base64.b64decode(page.call("Page.captureScreenshot", format="png")["data"]))
