"""An upstream that says exactly what it is told to, in pieces as large as it is told, with or without its usage."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Speaker(ThreadingHTTPServer):
    """Reads `say` in a request's body: the `pieces`, how many `times`, the `usage`, whether it is `cut`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[Mapping[str, Any]] = []
        self.has_said = threading.Semaphore(0)  # raised with each answer that was written to its end

    @property
    def url(self) -> str:
        """The `base_url` of a policy."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator["Speaker"]:
        """One that serves until the block ends."""
        with cls() as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Speaker
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Say nothing."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(request)
        say = {"pieces": ["All is well."], "times": 1, "usage": None, "cut": False, **request.get("say", {})}
        say["pieces"] = say["pieces"] * say["times"]
        if request.get("stream"):
            self._stream(say)
        else:
            self._plain(say)
        self.server.has_said.release()

    def _plain(self, say: Mapping[str, Any]) -> None:
        message = {"role": "assistant", "content": "".join(say["pieces"])}
        body = {"id": "said", "object": "chat.completion", "created": 1, "model": "speaker"}
        body["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        if say["usage"]:
            body["usage"] = say["usage"]
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, say: Mapping[str, Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for piece in say["pieces"]:
            self._event([{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
        if not say["cut"]:
            self._event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
            if say["usage"]:
                self._event([], usage=say["usage"])
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, choices: list[dict[str, Any]], **extra: Any) -> None:
        chunk = {"id": "said", "object": "chat.completion.chunk", "created": 1, "model": "speaker", "choices": choices}
        self.wfile.write(b"data: " + json.dumps(chunk | extra).encode() + b"\n\n")
