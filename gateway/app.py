"""Composition root: builds every object from the settings and policies, the routes, and what runs beside requests."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from gateway.budget.prices import PriceList
from gateway.formats.chat import parse_chat
from gateway.identity.keyring import Keyring
from gateway.policy.catalog import Catalog, Facts
from gateway.policy.loader import PolicyError
from gateway.policy.schema import Backend as BackendSettings
from gateway.policy.schema import Policy
from gateway.proxy import Dice, Proxy, Runtime
from gateway.server.endpoints import Completions, RequestIds
from gateway.server.health import METRICS_TYPE, Nowhere, Page, alive, readiness
from gateway.server.models import Models
from gateway.settings import Settings
from gateway.telemetry.logs import Log
from gateway.telemetry.metrics import BackendGauges, Metrics
from gateway.upstream.backend import Backend, origin_of
from gateway.upstream.direct import open_wire
from gateway.upstream.simulator import SimulatorWire
from gateway.upstream.slots import Slots
from gateway.upstream.wire import Wire

LOOK_FOR_CHANGES = 1.0  # seconds


class Gateway:
    """One process's gateway: `app` is the ASGI application, `reload` swaps the policies."""

    def __init__(self, policy: Policy, *, source: Callable[[], Policy], settings: Settings, log: Log) -> None:
        self._source = source
        self._settings = settings
        self._directory = settings.policies
        self._log = log
        self._prices = PriceList.load()
        self._stamp = _stamp(settings.policies)
        self._metrics = Metrics()
        self._gauges: dict[str, BackendGauges] = {}
        self._wires: set[asyncio.Task[None]] = set()
        runtime = build_runtime(policy, self._prices)
        self.proxy = Proxy(runtime, report=log, observers=(self._metrics, log), dice=Dice())
        ids = RequestIds()
        models = Models(self.proxy, ids, created=int(time.time()))
        chat = Completions(self.proxy, ids, parse=parse_chat, upstream_path=b"/chat/completions")
        self.app: ASGIApp = Router(
            [
                Route("/v1/chat/completions", chat),
                Route("/v1/models", models),
                Route("/v1/models/{id:path}", models),
                Route("/livez", Page(ids, alive)),
                Route("/readyz", Page(ids, lambda: readiness(self.proxy))),
                Route("/metrics", Page(ids, self._render_metrics)),
            ],
            default=Nowhere(ids),
            redirect_slashes=False,
            lifespan=self._lifespan,
        )

    def reload(self) -> bool:
        """Read the policies again and put them in force as a whole; a bad file changes nothing and is reported."""
        self._stamp = _stamp(self._directory)
        try:
            policy = self._source()
            check_exposure(policy, self._settings.host)
            runtime = build_runtime(policy, self._prices, self.proxy.runtime)
        except (PolicyError, ValueError, OSError) as error:
            self._log.event("reload_failed", error=str(error))
            return False
        old, self.proxy.runtime = self.proxy.runtime, runtime
        self._log.event("reloaded", policies=str(self._directory or "demo"), files=len(policy.sources))
        kept = {id(backend.wire) for backend in runtime.backends.values()}
        for backend in old.backends.values():
            if id(backend.wire) not in kept:
                self._retire(backend)
        return True

    def _retire(self, backend: Backend) -> None:
        """Close the wire of a backend that is gone, once its last request is over."""

        async def close_when_idle() -> None:
            while backend.busy:  # noqa: ASYNC110 - nothing waits for this
                await asyncio.sleep(1.0)
            await backend.wire.aclose()

        task = asyncio.get_running_loop().create_task(close_when_idle())
        self._wires.add(task)
        task.add_done_callback(self._wires.discard)

    @asynccontextmanager
    async def _lifespan(self, _app: object) -> AsyncIterator[None]:
        self._log.start(asyncio.get_running_loop())
        ticking = asyncio.get_running_loop().create_task(self._tick())
        try:
            yield
        finally:
            ticking.cancel()
            for backend in self.proxy.runtime.backends.values():
                await backend.wire.aclose()
            self._log.close()
            self._metrics.close()

    async def _tick(self) -> None:
        """Once a second: look for changed policies, and show how the backends are doing."""
        while True:
            await asyncio.sleep(LOOK_FOR_CHANGES)
            self._show_backends()
            if self._directory is not None and _stamp(self._directory) != self._stamp:
                self.reload()

    def _show_backends(self) -> None:
        runtime, now = self.proxy.runtime, time.monotonic()
        for name, backend in runtime.backends.items():
            gauges = self._gauges.get(name)
            if gauges is None:
                gauges = self._gauges[name] = self._metrics.backend(name)
            gauges.inflight.set(backend.busy)
            gauges.breaker_state.set(backend.breaker.state(now).value)
            gauges.queue_depth.set(runtime.slots[name].waiting if name in runtime.slots else 0)

    def _render_metrics(self) -> tuple[int, bytes, bytes]:
        self._show_backends()
        return 200, METRICS_TYPE, self._metrics.render()


def build_runtime(policy: Policy, prices: PriceList, old: Runtime | None = None) -> Runtime:
    """Objects for these policies; a backend whose settings did not change goes on as it is."""
    backends: dict[str, Backend] = {}
    slots: dict[str, Slots] = {}
    for name, settings in policy.backends.items():
        if name in policy.disabled:
            continue
        if old is not None and name in old.backends and _same_backend(name, old.policy, policy):
            backends[name] = old.backends[name]
            if name in old.slots:
                slots[name] = old.slots[name]
            continue
        backends[name] = Backend(name, settings, policy.defaults.breaker, _wire(name, settings))
        if settings.slots is not None:
            slots[name] = Slots(name, settings.slots, settings.queue.size, settings.queue.timeout)
    catalog = Catalog(policy, lambda _, backend, model: facts_of(prices, backend, model))
    return Runtime(policy, catalog, Keyring.from_policy(policy), backends, slots)


def facts_of(prices: PriceList, backend: BackendSettings, model: str) -> Facts:
    """What the bundled list knows of a model; nothing for a local backend, where the same name costs nothing."""
    if backend.local or backend.provider == "simulator":
        return Facts()
    listed = prices.lookup(backend.provider, backend.base_url, model)
    if listed is None:
        return Facts()
    return Facts(
        rates=listed.rates,
        context=listed.context,
        max_output=listed.max_output,
        prefill=listed.prefill,
        mode=listed.mode,
    )


def check_exposure(policy: Policy, host: str) -> None:
    """Refuse policies that nobody could use, or that everybody could. Raises ValueError with what to do."""
    if policy.server.auth == "none" and not is_loopback(host):
        raise ValueError(
            f"server.auth is `none`, which lets everybody in, and {host} is not a loopback address; "
            "write `server: {auth: keys}` with `keys:` in the policies, or serve with --host 127.0.0.1."
        )
    if policy.server.auth == "keys" and not policy.keys:
        raise ValueError(
            "server.auth is `keys`, and the policies name no key, so nobody could use this gateway; add one under "
            "`keys:` (`name: {hash: sha256:…}`), or write `server: {auth: none}` to serve this machine alone."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host in ("localhost", "::1", "[::1]") or host.startswith("127.")


def _same_backend(name: str, old: Policy, new: Policy) -> bool:
    return old.backends[name] == new.backends[name] and old.defaults.breaker == new.defaults.breaker


def _wire(name: str, settings: BackendSettings) -> Wire:
    if settings.provider == "simulator" and settings.simulator is not None:
        return SimulatorWire(name, settings.simulator)
    return open_wire(origin_of(settings))


def _stamp(directory: Path | None) -> tuple[tuple[str, int, int], ...]:
    """The files of a directory with their sizes and times: what changes when a policy does."""
    if directory is None or not directory.is_dir():
        return ()
    found = sorted(path for path in directory.iterdir() if path.suffix in (".yaml", ".yml"))
    stats = [(path, path.stat()) for path in found if path.exists()]
    return tuple((path.name, stat.st_size, stat.st_mtime_ns) for path, stat in stats)
