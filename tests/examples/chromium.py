"""A headless Chromium, controlled by the DevTools protocol over two pipes."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--remote-debugging-pipe", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
)


class Chromium:
    """A browser with one page. Used in a ``with`` statement, at whose end it is closed."""

    def __init__(self, program: str, profile: Path):
        (read_commands, self._commands), (self._answers, write_answers) = os.pipe(), os.pipe()
        # Chromium reads from file descriptor 3 and writes to 4.
        shell = ["bash", "-c", f'exec "$@" 3<&{read_commands} 4>&{write_answers}', "chromium"]
        self._process = subprocess.Popen(
            [*shell, program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(read_commands, write_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._reader, self._id, self._session = os.fdopen(self._answers, "rb"), 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._commands)
        self._process.terminate()
        self._process.wait(10)
        self._reader.close()

    def call(self, method: str, **parameters: Any) -> dict:
        """Call a method of the protocol and return its result."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _read(self) -> bytes:
        content = bytearray()
        while (byte := self._reader.read(1)) != b"\0":
            assert byte, f"Chromium ended with {self._process.wait(10)}"
            content += byte
        return bytes(content)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, or that of its promise."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, address: str) -> None:
        """Go to a page; its scripts may still run after that."""
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def wait_for(self, condition: str, seconds: float = 180) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"still not true: {condition}; {self.evaluate('document.body.innerText')}"
            time.sleep(0.05)

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file with an ``<input type="file">``."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
