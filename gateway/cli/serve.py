"""`gateway serve`: runs the server."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from gateway.budget.store import Store, StoreDown
from gateway.policy.loader import PolicyError, default_directory, load
from gateway.policy.schema import Policy
from gateway.settings import DEFAULT_STORE, Settings
from gateway.telemetry.otlp_settings import TelemetryMisconfigured, check

_FILES = 65_536


@click.command("serve")
@click.option(
    "--policies",
    type=click.Path(path_type=Path),
    envvar="GATEWAY_POLICIES",
    metavar="DIR",
    help="The directory of *.yaml files; ./policies by default, else the ones shipped with the gateway.",
)
@click.option("--host", default="127.0.0.1", envvar="GATEWAY_HOST", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    envvar="GATEWAY_PORT",
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    envvar="GATEWAY_WORKERS",
    show_default=True,
    help="Processes on this port.",
)
@click.option(
    "--store",
    default=DEFAULT_STORE,
    envvar="GATEWAY_STORE",
    show_default=True,
    metavar="URL",
    help="Where budgets and usage are kept: sqlite:///FILE for one machine, redis://… for several.",
)
@click.option("--demo", is_flag=True, envvar="GATEWAY_DEMO", help="Serve simulated backends with a demo key.")
def command(policies: Path | None, host: str, port: int, workers: int, store: str, *, demo: bool) -> None:
    """Serve every model behind one URL."""
    directory = None if demo else policies or default_directory(Path.cwd())
    settings = Settings(directory, store, host, port, workers, os.environ.get("GATEWAY_ADMIN_KEY"), demo)
    try:
        source = _source(directory)
        _serve(settings, source(), source)
    except PolicyError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(2)
    except (ValueError, OSError, TelemetryMisconfigured) as error:
        click.echo(f"gateway: {error}", err=True)
        sys.exit(2)


def _source(directory: Path | None) -> Callable[[], Policy]:
    if directory is not None:
        return lambda: load(directory, os.environ)
    from gateway.cli.demo import demo_policy  # noqa: PLC0415 - only the demo needs it

    return demo_policy


def _serve(settings: Settings, policy: Policy, source: Callable[[], Policy]) -> None:
    from gateway.app import check_exposure  # noqa: PLC0415 - the server is heavy, and --help is not
    from gateway.budget.stores import open_store  # noqa: PLC0415
    from gateway.server.process import listen  # noqa: PLC0415

    _raise_file_limit()
    store = open_store(settings.store)
    managed = asyncio.run(_managed_keys(store, settings.store))
    check_exposure(policy, settings.host, managed_keys=managed)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        raise OSError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror}); choose another with --port."
        ) from None
    settings = replace(settings, port=listener.getsockname()[1])
    greeting = _greeting(settings, policy)
    if settings.workers == 1:
        _work(settings, policy, source, listener, None, lambda: click.echo(greeting))
        return
    from gateway.cli.workers import supervise  # noqa: PLC0415

    check(os.environ)  # once and here, instead of by every worker

    def work(metrics: Path, ready: Callable[[], None]) -> None:
        _work(settings, policy, source, listener, metrics, ready)

    sys.exit(supervise(settings.workers, work, ready=lambda: click.echo(greeting)))


def _raise_file_limit() -> None:
    """Let this process open as many files as it may: a request takes two, and the usual limit of 1,024 is soon met."""
    import resource  # noqa: PLC0415 - there is none on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _work(
    settings: Settings,
    policy: Policy,
    source: Callable[[], Policy],
    listener: socket.socket,
    metrics_directory: Path | None,
    ready: Callable[[], None],
) -> None:
    """Serve in this process until it is told to end."""
    from gateway.app import Gateway  # noqa: PLC0415 - the server is heavy, and --help is not
    from gateway.budget.stores import open_store  # noqa: PLC0415
    from gateway.server.process import Process, run  # noqa: PLC0415
    from gateway.telemetry.logs import LibraryHandler, Log  # noqa: PLC0415
    from gateway.telemetry.metrics import Metrics  # noqa: PLC0415

    metrics = Metrics(metrics_directory)
    log = Log(shared=settings.workers > 1, dropped=metrics.log_dropped)
    logging.basicConfig(handlers=[LibraryHandler(log)], level=logging.WARNING, force=True)
    store = open_store(settings.store)
    gateway = Gateway(policy, source=source, settings=settings, store=store, log=log, metrics=metrics)
    run(Process(gateway.site, gateway.proxy, reload=gateway.reload, ready=ready), listener)


async def _managed_keys(store: Store, url: str) -> int:
    """How many managed keys there are; none when a server does not answer now. Raises ValueError for a file."""
    try:
        await store.open()
        return len(await store.keys())
    except StoreDown as error:
        if url.startswith("sqlite:"):
            raise ValueError(f"the store {url} cannot be used: {error}; name another file with --store.") from error
        return 0
    finally:
        await store.close()


def _greeting(settings: Settings, policy: Policy) -> str:
    """The one line that says what is served; the demo adds what to paste."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    where = "the demo's policies" if settings.policies is None else f"policies {settings.policies}"
    on = len(policy.backends) - len(policy.disabled)
    off = "; ".join(f"{name} ({reason})" for name, reason in policy.disabled.items())
    line = (
        f"gateway serves {url}/v1 with {where}: {on} of {len(policy.backends)} backends, "
        f"{len(policy.models)} models, {len(policy.aliases)} aliases, {len(policy.tasks)} tasks, "
        f"{len(policy.keys)} keys" + (f"; off: {off}" if off else "")
    )
    few = [name for name, backend in policy.backends.items() if backend.slots and backend.slots < settings.workers]
    if few:
        count = settings.workers
        line += (
            f"\nEach of {count} workers needs a slot of its own: {', '.join(few)} may have {count} requests at once."
        )
    if not settings.demo:
        return line
    from gateway.cli.demo import how_to_try  # noqa: PLC0415

    return line + "\n" + how_to_try(f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else host}:{settings.port}/v1")  # noqa: S104
