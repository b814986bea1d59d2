"""What every endpoint has in common: an id, a known caller, a body within bounds, one answer, one record."""

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar

from gateway.errors import GatewayError, StreamBroken, Unavailable
from gateway.exchange import Exchange
from gateway.formats.request import Request
from gateway.identity.principal import Principal
from gateway.proxy import Proxy, pass_through_headers
from gateway.runtime import Runtime
from gateway.server.auth import Headers, check_body, forwarded, secret_of, task_of
from gateway.server.downstream import Downstream, RequestIds
from gateway.server.errors import (
    InternalError,
    Render,
    allow_header,
    in_openais_shape,
    refusal_body,
    send_body,
    send_error,
    wrong_method,
)
from gateway.server.relay import break_off, relay
from gateway.trip import Trip, refusal_code
from gateway.upstream.dispatch import PassThrough, Pin
from gateway.upstream.wire import Header
from gateway.values import value


@value
class Asked:
    """A request that has been read: who asks for what, under which policies, and which headers of it go on."""

    runtime: Runtime
    principal: Principal
    request: Request
    headers: Sequence[Header]
    task: str | None


class Completions:
    """`POST` endpoint that carries a request to a backend.

    `parse` reads the body, `render` gives errors their shape. `id_header` is a second name of `x-request-id`.
    """

    _methods: ClassVar[Sequence[str]] = ("POST",)

    def __init__(
        self,
        proxy: Proxy,
        ids: RequestIds,
        *,
        parse: Callable[[bytes], Request],
        render: Render = in_openais_shape,
        id_header: bytes | None = None,
    ) -> None:
        self._proxy = proxy
        self._ids = ids
        self._parse = parse
        self._render = render
        self._id_header = id_header

    async def serve(self, downstream: Downstream) -> None:
        """Serve one request."""
        proxy = self._proxy
        trip = proxy.begin(self._ids.next(), downstream.method, downstream.path, "")
        if self._id_header is not None:
            downstream.also = (self._id_header, trip.request_id.encode())
        traced = proxy.trace(trip, downstream.headers)
        outcome = "error"
        proxy.running += 1
        try:
            if downstream.method not in self._methods:
                raise wrong_method(downstream.method, downstream.path, self._methods)
            proxy.admit_work()
            outcome = await self._serve(trip, downstream, traced)
        except GatewayError as error:
            self._refuse(trip, error, downstream)
        except PassThrough as refusal:
            outcome = self._pass(trip, refusal, downstream)
        except asyncio.CancelledError:
            if not (downstream.gone or proxy.draining):
                outcome, trip.status = "interrupted", trip.status or 503
                raise
            _uncancel()
            if downstream.gone:
                outcome, trip.status, trip.code = "client_gone", 499, "client_gone"
            else:
                over = Unavailable("This gateway is shutting down; send the request again.", code="draining")
                outcome = self._break_off(trip, over, downstream)
        except Exception as failure:  # noqa: BLE001 - whatever it is, the client gets an answer and the log the reason
            fault = InternalError.told(proxy.report, trip.request_id, failure)
            outcome = self._break_off(trip, fault, downstream)
        finally:
            proxy.running -= 1
            trip.finish(outcome)

    async def _serve(self, trip: Trip, downstream: Downstream, traced: list[Header]) -> str:
        runtime = self._proxy.runtime
        headers = downstream.headers
        principal = trip.principal = runtime.keyring.identify(secret_of(headers), trip.at)
        limit = runtime.policy.server.max_body
        check_body(headers, limit)
        request = trip.request = self._read(headers, await downstream.read_body(limit))
        trip.operation = request.operation
        asked = Asked(runtime, principal, request, forwarded(headers) + traced, task_of(headers))
        return await self._carry(trip, asked, downstream)

    async def _carry(self, trip: Trip, asked: Asked, downstream: Downstream) -> str:
        """Carry a request that has been read; how it ended."""
        exchange = await self._proxy.handle(
            trip,
            asked.runtime,
            asked.principal,
            asked.request,
            headers=asked.headers,
            task=asked.task,
            pin=self._pin(asked),
        )
        try:
            trip.status = exchange.status
            self._answered(asked, exchange)
            return await relay(exchange, asked.request, downstream, trip.request_id)
        finally:
            await exchange.aclose()

    def _pin(self, asked: Asked) -> Pin | None:
        """Where alone this request can be answered."""
        del asked
        return None

    def _answered(self, asked: Asked, exchange: Exchange) -> None:
        """An answer has begun."""

    def _read(self, headers: Headers, body: bytes) -> Request:
        del headers
        return self._parse(body)

    def _refuse(self, trip: Trip, error: GatewayError, downstream: Downstream) -> None:
        trip.status, trip.code = error.status, error.code
        if trip.walk is None or not trip.walk.records:
            self._proxy.rejected(error.code)
        if downstream.started:
            return
        headers: list[Header] = self._proxy.failed_labels(trip)
        if error.status == 405:
            headers.append(allow_header(self._methods))
        send_error(downstream, error, headers, trip.request_id, self._render)

    def _break_off(self, trip: Trip, error: GatewayError, downstream: Downstream) -> str:
        """The gateway itself cannot go on: say so, instead of an answer or at the end of one that has begun."""
        if not downstream.started or downstream.complete or trip.request is None:
            self._refuse(trip, error, downstream)
            return "error"
        broken = StreamBroken(error.message)
        trip.code = broken.code
        break_off(downstream, trip.request, broken)
        return "interrupted"

    def _pass(self, trip: Trip, refusal: PassThrough, downstream: Downstream) -> str:
        """A backend's own refusal, with its own body."""
        failure = refusal.failure
        trip.status, trip.code = failure.status or 400, refusal_code(failure.body)
        headers = [*pass_through_headers(refusal), *self._proxy.failed_labels(trip)]
        body = refusal_body(failure.body, trip.request_id, self._render)
        send_body(downstream, trip.status, headers, body, trip.request_id)
        return "error"


class Uploads(Completions):
    """The same for a request that comes as a form: `parse_form` reads the body by its content type."""

    def __init__(self, proxy: Proxy, ids: RequestIds, *, parse_form: Callable[[bytes, bytes], Request]) -> None:
        super().__init__(proxy, ids, parse=lambda body: parse_form(body, b""))
        self._parse_form = parse_form

    def _read(self, headers: Headers, body: bytes) -> Request:
        return self._parse_form(body, headers.get(b"content-type", b""))


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
