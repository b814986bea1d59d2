"""`GET /v1/models` and `/v1/models/{id}`: the names that the asking key may use."""

from collections.abc import Mapping
from typing import Any

from gateway.errors import NotFound, PermissionDenied
from gateway.identity.principal import Principal
from gateway.policy.catalog import AUTO, DEFAULT_TASK, TASK, Catalog, Route
from gateway.proxy import Proxy
from gateway.server.downstream import Downstream, RequestIds
from gateway.server.pages import CallersPage
from gateway.trip import Trip


class Models(CallersPage):
    """The list, or one of it."""

    def __init__(self, proxy: Proxy, ids: RequestIds, *, created: int) -> None:
        super().__init__(proxy, ids, "/v1/models", "models")
        self._created = created

    async def _doc(self, downstream: Downstream, trip: Trip) -> Mapping[str, Any]:
        runtime, principal = self._caller(downstream, trip)
        name = downstream.params.get("id")
        return self._one(runtime.catalog, principal, name) if name else self._all(runtime.catalog, principal)

    def _all(self, catalog: Catalog, principal: Principal) -> dict[str, Any]:
        routes = catalog.visible(principal)
        data = [self._entry(route) for route in routes]
        if any(route.name == TASK + DEFAULT_TASK for route in routes):
            data.insert(0, {"id": AUTO, "object": "model", "created": self._created, "owned_by": "task"})
        return {"object": "list", "data": data}

    def _one(self, catalog: Catalog, principal: Principal, name: str) -> dict[str, Any]:
        try:
            route = catalog.find(name, None, principal)
        except PermissionDenied as denied:
            raise NotFound(denied.message, param="model") from None
        return {**self._entry(route), "id": name}

    def _entry(self, route: Route) -> dict[str, Any]:
        owner = next(route.targets).backend if route.kind in ("model", "passthrough") else route.kind
        return {"id": route.name, "object": "model", "created": self._created, "owned_by": owner}
