"""Start a MONAI Label server, ask it over HTTP, stop it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from .environment import server_python

START = 180  # seconds in which a server must be up
TASK = 900  # seconds in which a training or scoring must be done
ENDED = ("DONE", "ERROR", "STOPPED")


class Answer(NamedTuple):
    """What the server says.

    Attributes:
        status: of HTTP.
        body: bytes.
    """

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class ServerError(RuntimeError):
    """The server does not do what it should; the message has the end of its log."""


class Server:
    """A MONAI Label server on this machine, for the time of a ``with``.

    Args:
        app: folder of the app.
        studies: folder of the images.
        conf: of the app.
        environment: variables beside those of this process.
        python: interpreter with MONAI Label; default: :func:`~ci.monai_label.environment.server_python`.
    """

    def __init__(
        self,
        app: Path,
        studies: Path,
        conf: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        python: Path | None = None,
    ) -> None:
        self.app, self.studies, self.conf = app, studies, dict(conf or {})
        self.environment = dict(environment or {})
        self.python = python or server_python()
        self.log = app / "server.log"
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def __enter__(self) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [str(self.python), "-m", "monailabel.main", "start_server", "--host", "127.0.0.1"]
        command += ["--app", str(self.app), "--studies", str(self.studies), "--port", str(self.port)]
        for key, value in self.conf.items():
            command += ["--conf", key, value]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        with self.log.open("w") as log:
            variables = {**kept, "PYTHONPATH": "", "no_proxy": "127.0.0.1", **self.environment}
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables, cwd=self.app)
        try:
            self._wait_for_start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _wait_for_start(self) -> None:
        end = time.monotonic() + START
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise self.error(f"the server ended with code {self.process.returncode}")
            try:
                if self.ask("GET", "/info/").status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.3)
        raise self.error(f"the server is not up after {START} s")

    def _stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def error(self, what: str) -> ServerError:
        """An error with the end of the log."""
        return ServerError(f"{what}; {self.log} ends in\n{self.log.read_text(errors='replace')[-4000:]}")

    def ask(
        self,
        method: str,
        path: str,
        json_body: Any = None,
        fields: Mapping[str, str] | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> Answer:
        """One request.

        Args:
            method: GET, POST, PUT or DELETE.
            path: with its query.
            json_body: content, as JSON.
            fields: content, as a form.
            files: content, as a form.
        """
        body, kind = None, None
        if json_body is not None:
            body, kind = json.dumps(json_body).encode(), "application/json"
        elif fields is not None or files is not None:
            body, kind = _form(fields or {}, files or {})
        headers = {} if kind is None else {"Content-Type": kind}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers, method=method)
        try:
            with self._open(request, timeout=TASK) as response:
                return Answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read())

    def need(self, method: str, path: str, **content: Any) -> Answer:
        """One request that succeeds.

        Raises:
            ServerError: when it does not.
        """
        answer = self.ask(method, path, **content)
        if answer.status != 200:
            raise self.error(f"{method} {path}: {answer.status} {answer.body[:500]!r}")
        return answer

    def infer(self, model: str, image: str, output: str = "image", **params: Any) -> Answer:
        """Segment a study."""
        query = urllib.parse.urlencode({"image": image, "output": output})
        return self.need("POST", f"/infer/{model}?{query}", fields={"params": json.dumps(params)})

    def submit(self, image: str, tag: str, label: Path) -> None:
        """Submit a label."""
        query = urllib.parse.urlencode({"image": image, "tag": tag})
        self.need("PUT", f"/datastore/label?{query}", fields={"params": "{}"}, files={"label": label})

    def run(self, what: str, name: str, **request: Any) -> dict[str, Any]:
        """A training (``train``) or scoring (``scoring``) to its end: its status and last lines.

        Raises:
            ServerError: when it fails.
        """
        end = time.monotonic() + TASK
        while True:  # one at a time: scoring at start may be on its way
            answer = self.ask("POST", f"/{what}/{name}", json_body=request)
            if answer.status == 200:
                break
            if answer.status != 429 or time.monotonic() > end:
                raise self.error(f"POST /{what}/{name}: {answer.status} {answer.body[:500]!r}")
            time.sleep(0.5)
        task = answer.json()["id"]
        while time.monotonic() < end:
            listed = self.need("GET", f"/{what}/?all=true").json()
            found: dict[str, Any] = next(entry for entry in listed if entry["id"] == task)
            if found["status"] in ENDED:
                if found["status"] != "DONE":
                    raise self.error(f"{what} {name}: {found['status']}\n" + "\n".join(found.get("details", [])))
                return found
            time.sleep(0.3)
        raise self.error(f"{what} {name} is not done after {TASK} s")

    def wait_for_all(self, what: str, count: int) -> list[dict[str, Any]]:
        """As many trainings (``train``) or scorings (``scoring``) as the server was to start, when all have ended.

        Raises:
            ServerError: when they take too long.
        """
        end = time.monotonic() + TASK
        while time.monotonic() < end:
            answer = self.ask("GET", f"/{what}/?all=true")
            tasks: list[dict[str, Any]] = answer.json() if answer.status == 200 else []  # 404: none yet
            if len(tasks) >= count and all(task["status"] in ENDED for task in tasks):
                return tasks
            time.sleep(0.5)
        raise self.error(f"{what}: {count} tasks are not done after {TASK} s")


def _form(fields: Mapping[str, str], files: Mapping[str, Path]) -> tuple[bytes, str]:
    """A form's content and its type."""
    border = uuid.uuid4().hex
    parts = [
        f'--{border}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    for name, path in files.items():
        head = f'--{border}\r\nContent-Disposition: form-data; name="{name}"; filename="{path.name}"\r\n\r\n'
        parts.append(head.encode() + path.read_bytes() + b"\r\n")
    return b"".join(parts) + f"--{border}--\r\n".encode(), f"multipart/form-data; boundary={border}"
