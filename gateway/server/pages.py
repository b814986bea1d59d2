"""What the pages for a caller with a key have in common: a `GET` that is traced, answered in JSON and recorded."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.errors import GatewayError
from gateway.identity.principal import Principal
from gateway.proxy import Proxy
from gateway.runtime import Runtime
from gateway.server.auth import secret_of
from gateway.server.downstream import Downstream, RequestIds
from gateway.server.errors import JSON, allow_header, send_body, send_error, wrong_method
from gateway.trip import Trip


class CallersPage(ABC):
    """An endpoint at `path`; `operation` is its name in records."""

    def __init__(self, proxy: Proxy, ids: RequestIds, path: str, operation: str) -> None:
        self._proxy = proxy
        self._ids = ids
        self._path = path
        self._operation = operation

    async def serve(self, downstream: Downstream) -> None:
        """Serve one request."""
        trip = self._proxy.begin(self._ids.next(), downstream.method, self._path, self._operation)
        outcome = "error"
        self._proxy.trace(trip, downstream.headers)
        try:
            if downstream.method not in ("GET", "HEAD"):
                raise wrong_method(downstream.method, downstream.path, ("GET",))
            doc = await self._doc(downstream, trip)
            trip.status, outcome = 200, "ok"
            send_body(downstream, 200, [JSON], orjson.dumps(doc), trip.request_id)
        except GatewayError as error:
            trip.status, trip.code = error.status, error.code
            self._proxy.rejected(error.code)
            allowed = [allow_header(("GET",))] if error.status == 405 else []
            send_error(downstream, error, allowed, trip.request_id)
        finally:
            trip.finish(outcome)

    @abstractmethod
    async def _doc(self, downstream: Downstream, trip: Trip) -> Mapping[str, Any]:
        """The answer. Raises GatewayError."""

    def _caller(self, downstream: Downstream, trip: Trip) -> tuple[Runtime, Principal]:
        """The policies in force and who asks. Raises AuthenticationError."""
        runtime = self._proxy.runtime
        principal = trip.principal = runtime.keyring.identify(secret_of(downstream.headers), trip.at)
        return runtime, principal
