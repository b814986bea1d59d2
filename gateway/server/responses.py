"""`/v1/responses`: what goes on from an earlier response goes where that is kept, and so does asking for it again."""

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gateway.errors import GatewayError, InvalidRequest, NotFound, UpstreamFailed
from gateway.exchange import Exchange
from gateway.formats.request import RESPONSES
from gateway.formats.responses import ResponsesRequest, parse_responses
from gateway.identity.principal import Principal
from gateway.proxy import Proxy
from gateway.runtime import Runtime
from gateway.server.auth import forwarded, secret_of
from gateway.server.downstream import Downstream, RequestIds
from gateway.server.endpoints import Asked, Completions
from gateway.server.errors import JSON, send_body, wrong_method
from gateway.trip import Trip
from gateway.upstream.backend import ApiKey, Backend
from gateway.upstream.dispatch import Pin
from gateway.upstream.wire import Header, Reply, WireError

_KEPT = 20_000  # responses; one takes about 300 bytes
_MAX_BODY = 64 * 2**20
_PATH = re.compile(r"/v1/responses/([A-Za-z0-9_-]{1,200})(/cancel|/input_items)?")
_METHODS = {None: ("GET", "DELETE"), "/cancel": ("POST",), "/input_items": ("GET",)}
_NOT_THERE = (400, 401, 403, 404)  # what says only that this account does not know the response


@dataclass(frozen=True, slots=True)
class Home:
    """Where a response is kept, and whose it is."""

    pin: Pin
    owner: str


class Homes:
    """The homes of the latest responses that this worker has passed on.

    A response that another worker made, or that was made before a restart, is looked for at every candidate: its id is
    a secret of 160 bits or more, which only the backend and its client know.
    """

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._homes: OrderedDict[str, Home] = OrderedDict()

    def remember(self, response_id: str, home: Home) -> None:
        """A response was made there."""
        self._homes[response_id] = home
        self._homes.move_to_end(response_id)
        if len(self._homes) > self._kept:
            self._homes.popitem(last=False)

    def find(self, response_id: str, owner: str) -> Pin | None:
        """Where it is kept, None when that is not known here. Raises KeyError for one of somebody else's."""
        home = self._homes.get(response_id)
        if home is None:
            return None
        if home.owner != owner:
            raise KeyError(response_id)
        return home.pin


class Responses(Completions):
    """`POST /v1/responses`."""

    def __init__(self, proxy: Proxy, ids: RequestIds, homes: Homes) -> None:
        super().__init__(proxy, ids, parse=parse_responses)
        self._homes = homes

    def _pin(self, asked: Asked) -> Pin | None:
        request = asked.request
        if not isinstance(request, ResponsesRequest) or request.follows is None:
            return None
        try:
            return self._homes.find(request.follows, asked.principal.name)
        except KeyError:
            raise InvalidRequest(
                f"Previous response with id {request.follows[:80]!r} not found.",
                code="previous_response_not_found",
                param="previous_response_id",
            ) from None

    def _answered(self, asked: Asked, exchange: Exchange) -> None:
        origin = exchange.origin
        request = asked.request
        if origin is None or not isinstance(request, ResponsesRequest):
            return
        response_id, answer = origin
        if response_id and request.is_native(answer.backend.speaks):
            pin = Pin(answer.backend.name, answer.api_key.label)
            self._homes.remember(response_id, Home(pin, asked.principal.name))


class StoredResponses(Completions):
    """`GET` and `DELETE /v1/responses/{id}`, `POST …/cancel`, `GET …/input_items`: asked where the response is kept."""

    _methods: ClassVar[Sequence[str]] = ("GET", "POST", "DELETE")

    def __init__(self, proxy: Proxy, ids: RequestIds, homes: Homes) -> None:
        super().__init__(proxy, ids, parse=parse_responses)
        self._homes = homes

    async def _serve(self, trip: Trip, downstream: Downstream, traced: list[Header]) -> str:
        runtime, headers = self._proxy.runtime, downstream.headers
        principal = trip.principal = runtime.keyring.identify(secret_of(headers), trip.at)
        response_id, path = _asked_for(trip)
        trip.operation, trip.path = "responses", trip.path.replace(response_id, "{id}")
        body = await downstream.read_body(runtime.policy.server.max_body)
        places = self._places(runtime, principal, response_id)
        status, kind, found = await _first_that_knows(
            runtime, places, trip.method.encode(), path, (*forwarded(headers), *traced), body
        )
        trip.status = status
        send_body(downstream, status, [kind], found, trip.request_id)
        return "ok" if status < 400 else "error"

    def _places(self, runtime: Runtime, principal: Principal, response_id: str) -> list[tuple[Backend, ApiKey]]:
        """Where it is kept, else everywhere that this principal may ask."""
        try:
            pin = self._homes.find(response_id, principal.name)
        except KeyError:
            raise _unknown(response_id) from None
        backends = [
            runtime.backends[name]
            for name in _reachable(runtime, principal)
            if name in runtime.backends and runtime.backends[name].speaks.endswith(RESPONSES)
        ]
        places = [(backend, key) for backend in backends for key in backend.keys]
        if pin is not None:
            places = [(each, key) for each, key in places if each.name == pin.backend and key.label == pin.api_key]
        if not places:
            raise _unknown(response_id)
        return places


def _asked_for(trip: Trip) -> tuple[str, bytes]:
    """The response, and the path to ask for below a backend's base URL."""
    found = _PATH.fullmatch(trip.path)
    if found is None:
        raise _unknown(trip.path.removeprefix("/v1/responses/"))
    allowed = _METHODS[found[2]]
    if trip.method not in allowed:
        raise wrong_method(trip.method, trip.path, allowed)
    return found[1], trip.path.removeprefix("/v1").encode()


def _reachable(runtime: Runtime, principal: Principal) -> list[str]:
    """The backends of everything that this principal may use."""
    names = {target.backend: None for route in runtime.catalog.visible(principal) for target in route.targets}
    for name, backend in runtime.policy.backends.items():
        if any(principal.may_use(glob) for glob in backend.passthrough):
            names[name] = None
    return list(names)


async def _first_that_knows(
    runtime: Runtime,
    places: Sequence[tuple[Backend, ApiKey]],
    method: bytes,
    path: bytes,
    headers: Sequence[Header],
    body: bytes,
) -> tuple[int, Header, bytes]:
    """Status, content type and body of the first place that knows the response, else of the last."""
    timeouts = runtime.policy.defaults.timeouts
    told: tuple[int, Header, bytes] | None = None
    error: GatewayError | None = None
    for backend, key in places:
        try:
            reply = await backend.wire.send(
                method,
                backend.prefix + path,
                (*headers, *key.headers, JSON, (b"accept-encoding", b"identity")),
                body,
                connect_timeout=timeouts.connect,
                timeout=timeouts.first_token,
            )
            try:
                told = reply.status, _kind(reply), await _whole(reply, timeouts.idle)
            finally:
                await reply.aclose()
        except WireError as failure:
            error = UpstreamFailed(f"Backend {backend.name!r} did not answer: {type(failure).__name__}: {failure}")
            continue
        if told[0] not in _NOT_THERE:
            return told
    if error is not None:
        raise error
    if told is None or told[0] in (401, 403):
        raise UpstreamFailed("No backend takes this gateway's api key for stored responses.", code="upstream_auth")
    return told


def _kind(reply: Reply) -> Header:
    return next((pair for pair in reply.headers if pair[0] == b"content-type"), JSON)


async def _whole(reply: Reply, idle: float) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while data := await reply.read(idle):
        pieces.append(data)
        size += len(data)
        if size > _MAX_BODY:
            raise UpstreamFailed(f"The answer is larger than {_MAX_BODY} bytes.", code="upstream_invalid_response")
    return b"".join(pieces)


def _unknown(response_id: str) -> NotFound:
    return NotFound(f"Response with id {response_id[:80]!r} not found.", code="response_not_found", param="id")
