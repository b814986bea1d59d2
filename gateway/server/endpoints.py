"""What every endpoint has in common: an id, a known caller, a body within bounds, one answer, one record."""

import asyncio
import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import GatewayError, StreamBroken, Unavailable
from gateway.exchange import Exchange
from gateway.formats.request import Request
from gateway.identity.principal import Principal
from gateway.proxy import Proxy, pass_through_headers
from gateway.runtime import Runtime
from gateway.server.auth import Headers, read_headers
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
from gateway.server.watch import ClientGone, Watch
from gateway.telemetry.lines import describe
from gateway.trip import Trip, refusal_code
from gateway.upstream.dispatch import PassThrough, Pin
from gateway.upstream.wire import Header


class RequestIds:
    """Ids that are unique without a system call for each: a random prefix for the process, and a count."""

    def __init__(self) -> None:
        self._prefix = "req_" + secrets.token_hex(8)
        self._count = itertools.count(1)

    def next(self) -> str:
        """A new id."""
        return f"{self._prefix}{next(self._count):08x}"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that has been read: who asks for what, under which policies, and which headers of it go on."""

    runtime: Runtime
    principal: Principal
    request: Request
    headers: Sequence[Header]
    task: str | None


class Completions:
    """`POST` endpoint that carries a request to a backend: a plain ASGI callable.

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        proxy = self._proxy
        trip = proxy.begin(self._ids.next(), scope["method"], scope["path"], "")
        answer = Started(send)
        if self._id_header is not None:
            answer.also = (self._id_header, trip.request_id.encode())
        outcome = "error"
        watch = Watch(receive)
        proxy.running += 1
        try:
            if scope["method"] not in self._methods:
                raise wrong_method(scope["method"], scope["path"], self._methods)
            proxy.admit_work()
            outcome = await self._serve(trip, read_headers(scope), watch, answer)
        except GatewayError as error:
            await self._refuse(trip, error, answer, watch)
        except PassThrough as refusal:
            outcome = await self._pass(trip, refusal, answer, watch)
        except ClientGone:
            outcome, trip.status, trip.code = "client_gone", 499, "client_gone"
        except asyncio.CancelledError:
            verdict = watch.verdict()
            if verdict is None and not proxy.draining:
                outcome, trip.status = "interrupted", trip.status or 503
                raise
            self._uncancel()
            if verdict is None:
                over = Unavailable("This gateway is shutting down; send the request again.", code="draining")
                outcome = await self._break_off(trip, over, answer, watch)
            elif isinstance(verdict, GatewayError):
                await self._refuse(trip, verdict, answer, watch)
            else:
                outcome, trip.status, trip.code = "client_gone", 499, "client_gone"
        except Exception as failure:  # noqa: BLE001 - whatever it is, the client gets an answer and the log the reason
            proxy.report.event("internal_error", request_id=trip.request_id, **describe(failure))
            fault = InternalError(f"The gateway failed; its log has the reason under {trip.request_id}.")
            outcome = await self._break_off(trip, fault, answer, watch)
        finally:
            watch.stop()
            proxy.running -= 1
            trip.finish(outcome)

    async def _serve(self, trip: Trip, headers: Headers, watch: Watch, send: "Started") -> str:
        proxy = self._proxy
        traced = proxy.trace(trip, headers.traceparent, headers.tracestate)
        runtime = proxy.runtime
        principal = trip.principal = runtime.keyring.identify(headers.secret, trip.at)
        limit = runtime.policy.server.max_body
        headers.check_body(limit)
        request = trip.request = self._read(headers, await watch.read_body(limit))
        trip.operation = request.operation
        asked = Asked(runtime, principal, request, headers.forwarded + traced, headers.task_name())
        return await self._carry(trip, asked, watch, send)

    async def _carry(self, trip: Trip, asked: "Asked", watch: Watch, send: "Started") -> str:
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
            return await relay(exchange, asked.request, send, watch, trip.request_id)
        finally:
            await exchange.aclose()

    def _pin(self, asked: "Asked") -> Pin | None:
        """Where alone this request can be answered."""
        del asked
        return None

    def _answered(self, asked: "Asked", exchange: Exchange) -> None:
        """An answer has begun."""

    def _read(self, headers: Headers, body: bytes) -> Request:
        del headers
        return self._parse(body)

    async def _refuse(self, trip: Trip, error: GatewayError, send: "Started", watch: Watch) -> None:
        watch.stop()
        trip.status, trip.code = error.status, error.code
        if trip.walk is None or not trip.walk.records:
            self._proxy.rejected(error.code)
        if send.started:
            return
        headers: list[Header] = self._proxy.failed_labels(trip)
        if error.status == 405:
            headers.append(allow_header(self._methods))
        await send_error(send, error, headers, trip.request_id, self._render)

    async def _break_off(self, trip: Trip, error: GatewayError, send: "Started", watch: Watch) -> str:
        """The gateway itself cannot go on: say so, instead of an answer or at the end of one that has begun."""
        if not send.unfinished or trip.request is None:
            await self._refuse(trip, error, send, watch)
            return "error"
        watch.stop()
        broken = StreamBroken(error.message)
        trip.code = broken.code
        await break_off(send, trip.request, broken)
        return "interrupted"

    async def _pass(self, trip: Trip, refusal: PassThrough, send: "Started", watch: Watch) -> str:
        """A backend's own refusal, with its own body."""
        watch.stop()
        failure = refusal.failure
        trip.status, trip.code = failure.status or 400, refusal_code(failure.body)
        headers = [*pass_through_headers(refusal), *self._proxy.failed_labels(trip)]
        body = refusal_body(failure.body, trip.request_id, self._render)
        await send_body(send, trip.status, headers, body, trip.request_id)
        return "error"

    @staticmethod
    def _uncancel() -> None:
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()


class Uploads(Completions):
    """The same for a request that comes as a form: `parse_form` reads the body by its content type."""

    def __init__(self, proxy: Proxy, ids: RequestIds, *, parse_form: Callable[[bytes, bytes], Request]) -> None:
        super().__init__(proxy, ids, parse=lambda body: parse_form(body, b""))
        self._parse_form = parse_form

    def _read(self, headers: Headers, body: bytes) -> Request:
        return self._parse_form(body, headers.content_type or b"")


class Shortcut:
    """Finds the endpoints that carry traffic by one look-up, and leaves the rest to the router (7 us a request)."""

    def __init__(self, endpoints: Mapping[str, ASGIApp], router: ASGIApp) -> None:
        self._endpoints = endpoints
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        endpoint = self._endpoints.get(scope["path"]) if scope["type"] == "http" else None
        await (endpoint or self._router)(scope, receive, send)


class Started:
    """A `send` that knows whether the answer has begun, when it is too late for another status, and is to go on.

    `also` is a header that it adds.
    """

    __slots__ = ("_send", "also", "started", "unfinished")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.also: Header | None = None
        self.started = False
        self.unfinished = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        if self.also is not None and message["type"] == "http.response.start":
            kept = [pair for pair in message["headers"] if pair[0] != self.also[0]]
            message["headers"] = [*kept, self.also]
        self.unfinished = message.get("more_body", False)
        await self._send(message)
