"""What the pages for a caller with a key have in common: a `GET` that is traced, answered in JSON and recorded."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from gateway.errors import GatewayError
from gateway.identity.principal import Principal
from gateway.proxy import Proxy
from gateway.runtime import Runtime
from gateway.server.auth import Headers, read_headers
from gateway.server.endpoints import RequestIds
from gateway.server.errors import JSON, allow_header, send_body, send_error, wrong_method
from gateway.trip import Trip


class CallersPage(ABC):
    """A plain ASGI callable at `path`; `operation` is its name in records."""

    def __init__(self, proxy: Proxy, ids: RequestIds, path: str, operation: str) -> None:
        self._proxy = proxy
        self._ids = ids
        self._path = path
        self._operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        trip = self._proxy.begin(self._ids.next(), scope["method"], self._path, self._operation)
        outcome = "error"
        headers = read_headers(scope)
        self._proxy.trace(trip, headers.traceparent, headers.tracestate)
        try:
            if scope["method"] not in ("GET", "HEAD"):
                raise wrong_method(scope["method"], scope["path"], ("GET",))
            doc = await self._doc(scope, headers, trip)
            trip.status, outcome = 200, "ok"
            await send_body(send, 200, [JSON], orjson.dumps(doc), trip.request_id, head_only=scope["method"] == "HEAD")
        except GatewayError as error:
            trip.status, trip.code = error.status, error.code
            self._proxy.rejected(error.code)
            allowed = [allow_header(("GET",))] if error.status == 405 else []
            await send_error(send, error, allowed, trip.request_id)
        finally:
            trip.finish(outcome)

    @abstractmethod
    async def _doc(self, scope: Scope, headers: Headers, trip: Trip) -> Mapping[str, Any]:
        """The answer. Raises GatewayError."""

    def _caller(self, headers: Headers, trip: Trip) -> tuple[Runtime, Principal]:
        """The policies in force and who asks. Raises AuthenticationError."""
        runtime = self._proxy.runtime
        principal = trip.principal = runtime.keyring.identify(headers.secret, trip.at)
        return runtime, principal
