"""Composition root: builds every object from the settings and policies, the routes, and what runs beside requests."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from starlette.routing import Route, Router

from gateway.admission import TermsBook
from gateway.budget.escrow import Escrow
from gateway.budget.gauges import BudgetGauges
from gateway.budget.hold import Alert, Overrun
from gateway.budget.keys_watch import KeysWatch
from gateway.budget.managed import keyring_of
from gateway.budget.meter import NANO
from gateway.budget.prices import PriceList
from gateway.budget.recorder import Recorder
from gateway.budget.store import ManagedKey, Store, StoreDown
from gateway.budget.stores import shown
from gateway.budget.tokenizer import Tokenizers
from gateway.formats.chat import parse_chat
from gateway.formats.embeddings import parse_embeddings
from gateway.formats.images import parse_images
from gateway.formats.messages import error_body, parse_count, parse_messages
from gateway.formats.moderations import parse_moderations
from gateway.formats.speech import parse_speech
from gateway.formats.text_completions import parse_completions
from gateway.formats.transcriptions import parse_transcriptions, parse_translations
from gateway.policy.loader import PolicyError
from gateway.policy.schema import Policy
from gateway.proxy import Bank, Dice, Proxy
from gateway.runtime import Runtime, build_runtime
from gateway.server.connection import Site
from gateway.server.counting import TokenCounts
from gateway.server.downstream import RequestIds, Routed
from gateway.server.endpoints import Completions, Uploads
from gateway.server.errors import InternalError
from gateway.server.health import METRICS_TYPE, Nowhere, Page, alive, readiness
from gateway.server.key import KeyPage
from gateway.server.models import Models
from gateway.server.responses import Homes, Responses, StoredResponses
from gateway.settings import Settings
from gateway.telemetry.genai_metrics import open_genai_metrics
from gateway.telemetry.logs import Log
from gateway.telemetry.metrics import BackendGauges, Metrics
from gateway.telemetry.names import OTHER
from gateway.telemetry.tracing import open_tracer
from gateway.upstream.backend import Backend
from gateway.upstream.prober import Prober

TICK = 0.5  # seconds


class Gateway:
    """One process's gateway: `site` is what its clients reach, `reload` swaps the policies."""

    def __init__(
        self,
        policy: Policy,
        *,
        source: Callable[[], Policy],
        settings: Settings,
        store: Store,
        log: Log,
        metrics: Metrics,
    ) -> None:
        self._source = source
        self._settings = settings
        self._log = log
        self._metrics = metrics
        self._stamp = _stamp(settings.policies)
        self._gauges: dict[str, BackendGauges] = {}
        self._beside: set[asyncio.Task[None]] = set()
        self._one_reload = asyncio.Lock()
        self._store_is_open = False
        self._keys = KeysWatch(store, changed=self._know_keys, trouble=self._store_fails, recovered=self._store_works)
        worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        escrow = Escrow(
            store,
            worker,
            store_down=policy.server.store_down,
            on_overrun=self._tell_overrun,
            on_alert=self._tell_alert,
        )
        self._budgets = BudgetGauges(escrow, metrics.budget)
        self._bank = Bank(store, escrow, Recorder(store, worker, lost=self._tell_lost), Tokenizers())
        self._tracer = open_tracer(os.environ, log.event)
        self._genai = open_genai_metrics(os.environ, log.event)
        self.proxy = Proxy(
            build_runtime(policy, PriceList.load(), all_keys=False, workers=settings.workers),
            self._bank,
            report=log,
            observers=(metrics, log) if self._genai is None else (metrics, log, self._genai),
            dice=Dice(),
            tracer=self._tracer,
            rejected=metrics.rejected,
        )
        self._prober = Prober(lambda: self.proxy.runtime.backends)
        ids = RequestIds()
        models = Models(self.proxy, ids, created=int(time.time()))
        chat = Completions(self.proxy, ids, parse=parse_chat)
        embeddings = Completions(self.proxy, ids, parse=parse_embeddings)
        messages = Completions(self.proxy, ids, parse=parse_messages, render=error_body, id_header=b"request-id")
        counts = TokenCounts(self.proxy, ids, parse=parse_count, render=error_body, id_header=b"request-id")
        homes = Homes()
        responses = Responses(self.proxy, ids, homes)
        router = Router(
            [
                Route("/v1/chat/completions", Routed(chat)),
                Route("/v1/messages", Routed(messages)),
                Route("/v1/messages/count_tokens", Routed(counts)),
                Route("/v1/responses", Routed(responses)),
                Route("/v1/responses/{rest:path}", Routed(StoredResponses(self.proxy, ids, homes))),
                Route("/v1/embeddings", Routed(embeddings)),
                Route("/v1/completions", Routed(Completions(self.proxy, ids, parse=parse_completions))),
                Route("/v1/moderations", Routed(Completions(self.proxy, ids, parse=parse_moderations))),
                Route("/v1/images/generations", Routed(Completions(self.proxy, ids, parse=parse_images))),
                Route("/v1/audio/speech", Routed(Completions(self.proxy, ids, parse=parse_speech))),
                Route("/v1/audio/transcriptions", Routed(Uploads(self.proxy, ids, parse_form=parse_transcriptions))),
                Route("/v1/audio/translations", Routed(Uploads(self.proxy, ids, parse_form=parse_translations))),
                Route("/v1/models", Routed(models)),
                Route("/v1/models/{id:path}", Routed(models)),
                Route("/v1/key", Routed(KeyPage(self.proxy, ids, escrow))),
                Route("/livez", Routed(Page(ids, alive))),
                Route("/readyz", Routed(Page(ids, lambda: readiness(self.proxy)))),
                Route("/metrics", Routed(Page(ids, self._render_metrics))),
            ],
            default=Routed(Nowhere(self.proxy, ids)),
            redirect_slashes=False,
            lifespan=self._lifespan,
        )
        self.site = Site(
            {
                b"/v1/chat/completions": chat,
                b"/v1/embeddings": embeddings,
                b"/v1/messages": messages,
                b"/v1/responses": responses,
            },
            router,
            ids,
            partial(InternalError.told, log),
            self._refused,
        )

    def reload(self) -> None:
        """Read the policies again and put them in force as a whole; a bad file changes nothing and is reported."""
        self._stamp = _stamp(self._settings.policies)
        self._run_beside(self._reload())

    async def _reload(self) -> None:
        async with self._one_reload:
            keys = self._keys.keys
            try:  # in a thread: the first provider that needs litellm takes seconds to import it
                runtime = await asyncio.to_thread(self._read_again)
            except (PolicyError, ValueError, OSError) as error:
                self._log.event("reload_failed", error=str(error))
                return
            old, self.proxy.runtime = self.proxy.runtime, runtime
            if self._keys.keys is not keys:
                self._know_keys(self._keys.keys)
            self._bank.escrow.store_down = runtime.policy.server.store_down
            files = len(runtime.policy.sources)
            self._log.event("reloaded", policies=str(self._settings.policies or "demo"), files=files)
            kept = {id(backend.wire) for backend in runtime.backends.values()}
            for backend in old.backends.values():
                if id(backend.wire) not in kept:
                    self._retire(backend)

    def _read_again(self) -> Runtime:
        policy = self._source()
        check_exposure(policy, self._settings.host, managed_keys=len(self._keys.keys))
        return build_runtime(
            policy,
            PriceList.load(),
            self._keys.keys,
            self.proxy.runtime,
            all_keys=self._keys.known,
            workers=self._settings.workers,
        )

    def _retire(self, backend: Backend) -> None:
        """Close the wire of a backend that is gone, once its last request is over."""

        async def close_when_idle() -> None:
            while backend.busy:  # noqa: ASYNC110 - nothing waits for this
                await asyncio.sleep(1.0)
            await backend.wire.aclose()

        self._run_beside(close_when_idle())

    def _run_beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    @asynccontextmanager
    async def _lifespan(self, _app: object) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        self._log.start(loop)
        runtime = self.proxy.runtime
        self._log.event(
            "start",
            address=f"{self._settings.host}:{self._settings.port}",
            pid=os.getpid(),
            policies=str(self._settings.policies or "demo"),
            backends=len(runtime.backends),
            disabled=dict(runtime.policy.disabled),
        )
        await self._open_store()
        await self._bank.escrow.start()
        await self._bank.recorder.start()
        await self._keys.start()
        beside = [loop.create_task(self._tick()), loop.create_task(self._prober.run())]
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await self._keys.stop()
            for backend in self.proxy.runtime.backends.values():
                await backend.wire.aclose()
            await self._close_bank()
            await close_together([exporter for exporter in (self._tracer, self._genai) if exporter is not None])
            self._log.event("stop", pid=os.getpid(), reason="it was told to end")
            self._log.close()
            self._metrics.close()

    async def _open_store(self) -> None:
        """Open the store, or go on without it for now: what needs it is answered as CONTRACT section 5 says."""
        try:
            await self._bank.store.open()
        except StoreDown:
            if self._settings.store.startswith("sqlite"):
                raise
            return
        self._store_is_open = True

    async def _close_bank(self) -> None:
        """Tell the store everything that it does not know yet, and leave."""
        try:
            await self._bank.recorder.aclose()
            await self._bank.escrow.aclose()
        except StoreDown as error:
            self._store_fails(str(error))
        await self._bank.store.close()

    async def _tick(self) -> None:
        """Twice a second: look for changed policies, show how backends are doing, and watch the store."""
        while True:
            await asyncio.sleep(TICK)
            self._show_backends()
            if self._settings.policies is not None and _stamp(self._settings.policies) != self._stamp:
                self.reload()
            if not self._store_is_open:
                await self._open_store()
            await self._budgets.show()

    def _know_keys(self, keys: Sequence[ManagedKey]) -> None:
        """Managed keys have changed: from now on they are as the store says."""
        runtime = self.proxy.runtime
        keyring = keyring_of(runtime.policy, keys)
        self.proxy.runtime = replace(runtime, keyring=keyring, terms=TermsBook(runtime.policy))

    def _store_fails(self, detail: str) -> None:
        self._log.event("store_trouble", store=shown(self._settings.store), detail=detail)

    def _store_works(self, seconds: float) -> None:
        self._log.event("store_recovered", store=shown(self._settings.store), seconds=round(seconds, 1))

    def _show_backends(self) -> None:
        runtime, now = self.proxy.runtime, time.monotonic()
        for name, backend in runtime.backends.items():
            gauges = self._gauges.get(name)
            if gauges is None:
                gauges = self._gauges[name] = self._metrics.backend(name)
            gauges.inflight.set(backend.busy)
            gauges.breaker_state.set(backend.breaker.state(now).value)
            gauges.queue_depth.set(runtime.slots[name].waiting if name in runtime.slots else 0)
        for name in self._gauges.keys() - runtime.backends.keys():
            for gauge in self._gauges.pop(name):
                gauge.set(0.0)

    def _render_metrics(self) -> tuple[int, bytes, bytes]:
        self._show_backends()
        return 200, METRICS_TYPE, self._metrics.render()

    def _tell_alert(self, alert: Alert) -> None:
        meter = alert.limit.meter
        scale = NANO if meter.unit == "usd" else 1
        self._log.event(
            "budget_alert",
            scope=meter.scope,
            name=meter.name,
            window=meter.window.name,
            unit=meter.unit,
            mark=alert.fraction,
            spent=alert.spent / scale,
            limit=alert.limit.amount / scale,
        )

    def _tell_overrun(self, overrun: Overrun) -> None:
        meter = overrun.limit.meter
        scale = NANO if meter.unit == "usd" else 1
        self._log.event(
            "budget_overrun",
            scope=meter.scope,
            name=meter.name,
            window=meter.window.name,
            unit=meter.unit,
            request_id=overrun.hold_id,
            over=(overrun.actual - overrun.held) / scale,
        )

    def _refused(self, request_id: str) -> None:
        """What was no HTTP has been refused; of it nothing is told, not even its method."""
        trip = self.proxy.begin(request_id, OTHER, OTHER, "")
        trip.status, trip.code = 400, "invalid_http"
        self.proxy.rejected(trip.code)
        trip.finish("error")

    def _tell_lost(self, records: int) -> None:
        self._log.event("usage_lost", records=records)


class Exporter(Protocol):
    """What may have to wait for a collector when it is closed."""

    def close(self) -> None:
        """Send what is left, for a bounded time."""
        ...


async def close_together(exporters: Sequence[Exporter]) -> None:
    """Close them at the same time: a collector that hangs is waited for once."""
    await asyncio.gather(*(asyncio.to_thread(exporter.close) for exporter in exporters))


def check_exposure(policy: Policy, host: str, *, managed_keys: int = 0) -> None:
    """Refuse policies that nobody could use, or that everybody could. Raises ValueError with what to do."""
    if policy.server.auth == "none" and not is_loopback(host):
        raise ValueError(
            f"server.auth is `none`, which lets everybody in, and {host} is not a loopback address; "
            "write `server: {auth: keys}` with `keys:` in the policies, or serve with --host 127.0.0.1."
        )
    if policy.server.auth == "keys" and not policy.keys and not managed_keys:
        raise ValueError(
            "server.auth is `keys`, and there is no key, so nobody could use this gateway; make one with `gateway keys "
            "create NAME`, or add one under `keys:` in the policies (`name: {hash: sha256:…}`), or write "
            "`server: {auth: none}` to serve this machine alone."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host in ("localhost", "::1", "[::1]") or host.startswith("127.")


def _stamp(directory: Path | None) -> tuple[tuple[str, int, int], ...]:
    """The files of a directory with their sizes and times: what changes when a policy does."""
    if directory is None or not directory.is_dir():
        return ()
    found = sorted(path for path in directory.iterdir() if path.suffix in (".yaml", ".yml"))
    stats = [(path, path.stat()) for path in found if path.exists()]
    return tuple((path.name, stat.st_size, stat.st_mtime_ns) for path, stat in stats)
