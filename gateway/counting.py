"""Counts a prompt's tokens before it is sent: as the backend that would answer it counts, else by our own estimate."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import orjson

from gateway.errors import GatewayError
from gateway.formats.messages import NATIVE, CountRequest
from gateway.identity.principal import Principal
from gateway.policy.router import Candidate, Plan, Wish, plan
from gateway.proxy import Proxy
from gateway.runtime import Runtime
from gateway.upstream.dispatch import Call, Walk, nothing_available
from gateway.upstream.openai import Plain
from gateway.upstream.wire import Header

_LONG = 20_000  # characters; what is longer is counted in a thread, since it takes milliseconds


class Free:
    """A gate that holds nothing: counting costs nothing."""

    async def admit(self, _candidate: Candidate) -> int | None:
        """Let everything through as it is."""
        return None

    def sending(self) -> None:
        """Nothing counts."""

    def rival(self) -> "Free":
        """Another that holds nothing."""
        return self

    def release(self) -> None:
        """Nothing to give back."""


async def count(
    proxy: Proxy,
    runtime: Runtime,
    principal: Principal,
    request: CountRequest,
    *,
    headers: Sequence[Header],
    task: str | None,
) -> tuple[bytes, list[Header]]:
    """The body `{"input_tokens": N}`, and headers that say for which model.

    Only the first candidate is asked, since it is the one that will answer. Raises GatewayError, or PassThrough with
    what that backend finds wrong with the request.
    """
    wish = Wish(request.model, task, 0, None, request.mode)
    way = plan(runtime.catalog, principal, wish, runtime.backends, time.monotonic(), proxy.dice)
    if not way.chosen:
        raise nothing_available(way)
    first = way.chosen[0]
    labels = proxy.labels(way.route, first.target)
    if runtime.backends[first.target.backend].speaks == NATIVE:
        body = await _asked(proxy, runtime, replace(way, candidates=(first,)), Call(request, headers, principal.name))
        if body is not None:
            return body, labels
    model = first.target.model
    if len(request.raw) > _LONG:
        tokens = await asyncio.to_thread(request.count, model)
    else:
        tokens = request.count(model)
    return orjson.dumps({"input_tokens": tokens}), labels


async def _asked(proxy: Proxy, runtime: Runtime, way: Plan, call: Call) -> bytes | None:
    """What the backend counts; None when it cannot say."""
    walk = Walk(
        way,
        call,
        backends=runtime.backends,
        slots={},
        gate=Free(),
        clock=time.monotonic,
        dice=proxy.dice,
        report=proxy.report,
    )
    try:
        answer = await walk.run()
    except GatewayError:
        return None
    try:
        return answer.content.answer.body if isinstance(answer.content, Plain) else None
    finally:
        await answer.aclose()
