"""Runs the real gateway as a process of its own, on policies that a test writes, and stops it as an operator would."""

import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, Self

import yaml

_ADDRESS = re.compile(r"^gateway serves (http://\S+):(\d+)/v1 ", re.MULTILINE)
_KEPT = ("PATH", "PYTHONPATH")
_PATIENCE = 30.0  # seconds for a start or an end, on a machine that is busy with other tests


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer, as it stood on the wire."""

    status: int
    headers: Message
    body: bytes

    @classmethod
    def read(cls, connection: socket.socket, method: str = "GET") -> Self:
        """Read it from a socket to which a request was written."""
        with http.client.HTTPResponse(connection, method=method) as response:
            response.begin()
            return cls(response.status, response.headers, response.read())

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object of the body, which has exactly OpenAI's four fields."""
        found = self.json
        assert list(found) == ["error"], found
        error: dict[str, Any] = found["error"]
        assert sorted(error) == ["code", "message", "param", "type"], error
        return error


class Served:
    """A gateway that runs. `url` has no path, `output` is what it has printed on stdout so far."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.port = 0
        self._told_to_end = False
        self._printed: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        self._readers = [
            threading.Thread(target=self._read, args=(name, getattr(process, name)), daemon=True)
            for name in self._printed
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, pipe: Any) -> None:
        with pipe:
            for line in pipe:
                self._printed[name].append(line)

    @property
    def output(self) -> str:
        """Standard output until now."""
        return b"".join(self._printed["stdout"]).decode()

    @property
    def errors(self) -> str:
        """Standard error until now."""
        return b"".join(self._printed["stderr"]).decode()

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What an SDK is given."""
        return f"{self.url}/v1"

    @property
    def log(self) -> list[dict[str, Any]]:
        """Every JSON line that it has logged."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    def line_of(self, request_id: str) -> Mapping[str, Any]:
        """The log's line of a request, once it is written."""
        deadline = time.monotonic() + 15
        while True:
            for line in self.log:
                if line.get("id") == request_id:
                    return line
            assert time.monotonic() < deadline, f"{request_id} is not in the log"
            time.sleep(0.01)

    def until_ready(self) -> None:
        """Wait until it has said where it serves, and answers there."""
        deadline = time.monotonic() + _PATIENCE
        while (found := _ADDRESS.search(self.output)) is None:
            assert self.process.poll() is None, f"the gateway ended: {self.output}{self.errors}"
            assert time.monotonic() < deadline, f"the gateway did not start: {self.output}{self.errors}"
            time.sleep(0.01)
        self.port = int(found[2])
        assert self.request("GET", "/livez").status == 200

    def until(self, text: str) -> None:
        """Wait until this stands in its output."""
        deadline = time.monotonic() + _PATIENCE
        while text not in self.output:
            assert time.monotonic() < deadline, f"{text!r} was not printed: {self.output}{self.errors}"
            time.sleep(0.01)

    def connect(self) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE)

    def speak(self, data: bytes, method: str = "GET") -> Reply:
        """Send these very bytes, and read one answer."""
        with self.connect() as connection:
            connection.sendall(data)
            return Reply.read(connection, method)

    def request(
        self, method: str, path: str, body: bytes | Any = None, *, key: str | None = None, **headers: str
    ) -> Reply:
        """One request; `body` is sent as it is when it is bytes, else as JSON. `x_a` names the header `x-a`."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "host: gateway", f"content-length: {len(data)}", "connection: close"]
        lines += [f"authorization: Bearer {key}"] if key is not None else []
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return self.speak("\r\n".join(lines).encode() + b"\r\n\r\n" + data, method)

    def chat(self, body: bytes | Any, *, key: str | None = None, **headers: str) -> Reply:
        """`POST /v1/chat/completions`."""
        return self.request("POST", "/v1/chat/completions", body, key=key, **headers)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Tell it to end; a second time would mean at once."""
        self._told_to_end = True
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM unless that was sent before, and the exit status."""
        if not self._told_to_end and self.process.poll() is None:
            self.end()
        return self.wait()

    def wait(self) -> int:
        """The exit status, once it has ended and all that it printed is read."""
        status = self.process.wait(_PATIENCE)
        for reader in self._readers:
            reader.join(_PATIENCE)
        return status


def gateway_command(*arguments: str) -> list[str]:
    """The gateway's command line, in this interpreter's environment."""
    return [sys.executable, "-m", "gateway", *arguments]


def spawn(*arguments: str, folder: Path, env: Mapping[str, str] | None = None) -> Served:
    """Start a command of the gateway in `folder`, with next to nothing in its environment but `env`."""
    return Served(
        subprocess.Popen(
            gateway_command(*arguments),
            cwd=folder,
            env={**{name: os.environ[name] for name in _KEPT if name in os.environ}, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    )


@contextlib.contextmanager
def serve(
    folder: Path, policies: Mapping[str, Any], *arguments: str, env: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """A gateway on a free port with these policies; it must end with status 0 and without a fault of its own."""
    served = spawn(
        "serve", "--policies", str(write_policies(folder, policies)), "--port", "0", *arguments, folder=folder, env=env
    )
    try:
        served.until_ready()
        yield served
        status = served.stop()
    finally:
        if served.process.poll() is None:
            served.process.kill()
        served.wait()
    assert status == 0, served.errors
    assert "Traceback" not in served.output + served.errors, served.output + served.errors


def write_policies(folder: Path, policies: Mapping[str, Any]) -> Path:
    """The directory with these policies in it."""
    directory = folder / "policies"
    directory.mkdir(exist_ok=True)
    (directory / "all.yaml").write_text(yaml.safe_dump(policies, sort_keys=False, allow_unicode=True))
    return directory


def key_policy(secret: str, **settings: Any) -> dict[str, Any]:
    """An entry of `keys:` for this secret."""
    return {"hash": f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}", **settings}


def ask(model: str, text: str = "Hello", **fields: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def events_of(body: bytes) -> Sequence[Any]:
    """The events of a stream, parsed; `[DONE]` as a string."""
    found = [part.removeprefix(b"data: ") for part in body.split(b"\n\n") if part.startswith(b"data: ")]
    return ["[DONE]" if data == b"[DONE]" else json.loads(data) for data in found]
