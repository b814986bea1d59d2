"""`GET /v1/models` and `/v1/models/{id}`: the names that the asking key may use."""

from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from gateway.errors import GatewayError, NotFound, PermissionDenied
from gateway.policy.catalog import AUTO, DEFAULT_TASK, TASK, Route
from gateway.proxy import Proxy
from gateway.server.auth import Headers, read_headers
from gateway.server.endpoints import RequestIds
from gateway.server.errors import JSON, allow_header, send_body, send_error, wrong_method
from gateway.trip import Trip


class Models:
    """The list, or one of it: a plain ASGI callable."""

    def __init__(self, proxy: Proxy, ids: RequestIds, *, created: int) -> None:
        self._proxy = proxy
        self._ids = ids
        self._created = created

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        trip = self._proxy.begin(self._ids.next(), scope["method"], "/v1/models", "models")
        outcome = "error"
        headers = read_headers(scope)
        self._proxy.trace(trip, headers.traceparent, headers.tracestate)
        try:
            if scope["method"] not in ("GET", "HEAD"):
                raise wrong_method(scope["method"], scope["path"], ("GET",))
            name = scope.get("path_params", {}).get("id")
            doc = self._one(headers, trip, name) if name else self._all(headers, trip)
            trip.status, outcome = 200, "ok"
            await send_body(send, 200, [JSON], orjson.dumps(doc), trip.request_id, head_only=scope["method"] == "HEAD")
        except GatewayError as error:
            trip.status, trip.code = error.status, error.code
            self._proxy.rejected(error.code)
            allowed = [allow_header(("GET",))] if error.status == 405 else []
            await send_error(send, error, allowed, trip.request_id)
        finally:
            trip.finish(outcome)

    def _all(self, headers: Headers, trip: Trip) -> dict[str, Any]:
        catalog, principal = self._caller(headers, trip)
        routes = catalog.visible(principal)
        data = [self._entry(route) for route in routes]
        if any(route.name == TASK + DEFAULT_TASK for route in routes):
            data.insert(0, {"id": AUTO, "object": "model", "created": self._created, "owned_by": "task"})
        return {"object": "list", "data": data}

    def _one(self, headers: Headers, trip: Trip, name: str) -> dict[str, Any]:
        catalog, principal = self._caller(headers, trip)
        try:
            route = catalog.find(name, None, principal)
        except PermissionDenied as denied:
            raise NotFound(denied.message, param="model") from None
        return {**self._entry(route), "id": name}

    def _caller(self, headers: Headers, trip: Trip) -> tuple[Any, Any]:
        runtime = self._proxy.runtime
        trip.principal = runtime.keyring.identify(headers.secret, trip.at)
        return runtime.catalog, trip.principal

    def _entry(self, route: Route) -> dict[str, Any]:
        owner = next(route.targets).backend if route.kind in ("model", "passthrough") else route.kind
        return {"id": route.name, "object": "model", "created": self._created, "owned_by": owner}
