"""Chains of backends that fail as they are told, behind the real gateway; each has api keys that tell who was asked."""

import json
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

from tests.faults import FaultUpstream, Seen
from tests.support import Reply, Served, ask, events_of

QUICK = {"connect": "2s", "first_token": "500ms", "idle": "500ms", "total": "20s"}
PATIENT = {"connect": "5s", "first_token": "20s", "idle": "20s", "total": "60s"}


@dataclass(frozen=True)
class Part:
    """One candidate: what its backend does to every request that the upstream's script does not decide."""

    fault: str = "ok"
    keys: int = 1
    backend: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)


Chains = Mapping[str, Sequence[Part | str]]


def policies_of(url: str, chains: Chains, **rest: Any) -> dict[str, Any]:
    """Policies where each chain is an alias over backends of its own: `name-0`, `name-1`, … with keys `name-0#1`, …

    In `rest`, `routes` are settings of the aliases, and the others stand at the top of the policies.
    """
    routes = rest.pop("routes", {})
    backends: dict[str, Any] = {}
    models: dict[str, Any] = {}
    aliases: dict[str, Any] = {}
    for name, parts in chains.items():
        members = []
        for place, given in enumerate(parts):
            part = given if isinstance(given, Part) else Part(given)
            member = f"{name}-{place}"
            keys = [f"{member}#{n}" for n in range(1, part.keys + 1)]
            backends[member] = {"base_url": url, "api_keys": keys, **part.backend}
            models[member] = {"backend": member, "model": f"fault:{part.fault}", **part.model}
            members.append(member)
        route = routes.get(name, {})
        aliases[name] = {"chain": members, **route}
    return {"server": {"auth": "none"}, "backends": backends, "models": models, "aliases": aliases, **rest}


@dataclass(frozen=True)
class Told:
    """An answer, what the upstream saw of the request, and how long it took, in seconds."""

    reply: Reply
    seen: Sequence[Seen]
    took: float

    @property
    def asked(self) -> list[str]:
        """Which backends were asked, in order."""
        return [asked_of(each) for each in self.seen]

    @property
    def places(self) -> list[int]:
        """The places in the chain of those that were asked."""
        return [int(name.rsplit("-", 1)[1]) for name in self.asked]

    @property
    def text(self) -> str:
        """What the answer says, plain or streamed."""
        return text_of(self.reply)


def asked_of(seen: Seen) -> str:
    """The backend that a request was sent to."""
    return key_of(seen).partition("#")[0]


def key_of(seen: Seen) -> str:
    """The api key that it was sent with."""
    return seen.headers.get("authorization", "").removeprefix("Bearer ")


def text_of(reply: Reply) -> str:
    """What an answer says, plain or streamed."""
    if reply.headers.get_content_type() == "application/json":
        return str(reply.json["choices"][0]["message"]["content"])
    chunks = [event for event in events_of(reply.body) if isinstance(event, dict)]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


class Stage:
    """A gateway and its upstream."""

    def __init__(self, gateway: Served, upstream: FaultUpstream) -> None:
        self.gateway = gateway
        self.upstream = upstream

    def tell(self, model: str, script: Sequence[str] = (), **fields: Any) -> Told:
        """One request, and the requests that it made the gateway send; the first of those meet `script`."""
        before = len(self.upstream.log)
        self.upstream.script(script)
        began = time.monotonic()
        reply = self.gateway.chat(ask(model, **fields))
        took = time.monotonic() - began
        assert not self.upstream._script, "the gateway sent fewer requests than the test has faults for"
        return Told(reply, [each for each in self.upstream.log[before:] if each.method == "POST"], took)

    def tell_all(self, model: str, count: int, at_once: int = 8, **fields: Any) -> list[Reply]:
        """So many requests, some of them at once."""
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda _: self.gateway.chat(ask(model, **fields)), range(count)))

    def metric(self, sample: str) -> float:
        """One number of `/metrics`; 0 when it is not there."""
        found = re.search(
            rf"^{re.escape(sample)} (\S+)$", self.gateway.request("GET", "/metrics").body.decode(), re.MULTILINE
        )
        return float(found[1]) if found else 0.0

    def until(self, predicate: Callable[[], bool], timeout: float = 15.0) -> None:
        """Wait until something is so that only asking can tell."""
        deadline = time.monotonic() + timeout
        while not predicate():
            assert time.monotonic() < deadline, f"it did not come true within {timeout:g} s: {self.gateway.output}"
            time.sleep(0.02)

    def ready(self, backend: str) -> Mapping[str, Any]:
        """What `/readyz` says of a backend."""
        state: Mapping[str, Any] = self.gateway.request("GET", "/readyz").json["backends"][backend]
        return state

    def until_logged(self, name: str, **fields: Any) -> Mapping[str, Any]:
        """The first line of the log with this event and these fields, once it is written."""
        found: list[Mapping[str, Any]] = []

        def is_there() -> bool:
            lines = [line for line in self.gateway.log if line.get("event") == name]
            found.extend(line for line in lines if all(line.get(each) == value for each, value in fields.items()))
            return bool(found)

        self.until(is_there)
        return found[0]

    def until_request_logged(self, route: str) -> Mapping[str, Any]:
        """The first line of the log of a request for this route, once it is written."""
        self.until(lambda: any(line.get("route") == route for line in self.gateway.log))
        return next(line for line in self.gateway.log if line.get("route") == route)


class Open:
    """A request whose answer has not been read yet."""

    def __init__(self, gateway: Served, model: str, **fields: Any) -> None:
        self.connection = gateway.connect()
        key = fields.pop("key", None)
        body = json.dumps(ask(model, **fields)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n"
        head += f"authorization: Bearer {key}\r\n" if key else ""
        self.connection.sendall(head.encode() + b"connection: close\r\n\r\n" + body)

    def reply(self) -> Reply:
        """The whole answer."""
        with self.connection:
            return Reply.read(self.connection, "POST")

    def leave(self) -> float:
        """Close it, and say when."""
        left = time.monotonic()
        self.connection.close()
        return left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
        return port
