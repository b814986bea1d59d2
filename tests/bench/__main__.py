"""`uv run python -m tests.bench`: the gateway beside nginx, in one run, on one core each for subject and load.

Core A runs what is measured (nginx as the proxy, or the gateway); core B runs wrk and the mocks, which share it. A plain
answer and a stream in one piece come from nginx; a stream whose events are written one by one comes from tests.bench.mock.
Absolute figures vary from run to run and machine to machine; the ratio to nginx in the same run is what counts.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tests.bench import admission, backends, translation
from tests.bench.processes import (
    BenchError,
    Load,
    Pinned,
    cores,
    free_port,
    pinned,
    post,
    require,
    write_script,
    wrk,
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `aim` is for the ratio where there is one, else for the gateway's own figure.

    What stands in the column of nginx is of `base`.
    """

    what: str
    nginx: float | None
    gateway: float | None
    unit: str
    aim: float | None = None
    aim_is_ratio: bool = False
    base: str = "nginx"

    @property
    def ratio(self) -> float | None:
        """The gateway's figure over nginx's."""
        return self.gateway / self.nginx if self.gateway is not None and self.nginx else None


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for; `seconds` is per measurement."""

    seconds: float
    connections: int
    rounds: int
    limits: bool


class Stage:
    """Mocks and proxy in their places, the gateway when it is asked for."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder, self.options = folder, options
        self.subject_core, self.load_core = cores()
        self.mock, self.events, self.proxy = free_port(), free_port(), free_port()

    @contextmanager
    def mocks(self) -> Iterator[None]:
        """nginx and the event mock on the load's core."""
        config = backends.write_mock(self.folder / "mock", self.mock)
        writer = [sys.executable, "-m", "tests.bench.mock", str(self.events)]
        with ExitStack() as stack:
            stack.enter_context(self._nginx(self.load_core, config, self.mock))
            stack.enter_context(pinned(self.load_core, writer, self.events, None, self.folder / "events.log"))
            yield

    @contextmanager
    def nginx(self) -> Iterator[Pinned]:
        """nginx as the proxy, on the subject's core."""
        config = backends.write_proxy(self.folder / "proxy", self.proxy, self.mock, self.events)
        with self._nginx(self.subject_core, config, self.proxy) as found:
            yield found

    @contextmanager
    def gateway(self, name: str = "gateway", *, claude: bool = False, traced: bool = False) -> Iterator[Pinned]:
        """The gateway on the subject's core, with policies and a store of its own; see `backends.write_policies`.

        With `traced`, every request is traced to the mock's nginx.
        """
        home = self.folder / name
        home.mkdir()
        limits = self.options.limits
        policies = backends.write_policies(home / "policies", self.mock, self.events, limits=limits, claude=claude)
        port = free_port()
        command = ["env", f"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:{self.mock}"] if traced else []
        command += [sys.executable, "-m", "gateway", "serve", "--policies", str(policies)]
        command += ["--port", str(port), "--store", f"sqlite:///{home}/gateway.db"]
        with pinned(self.subject_core, command, port, "/readyz", home / "gateway.log") as found:
            yield found

    def load(self, url: str, kind: str, connections: int, *, through_gateway: bool) -> Load:
        """Check one answer, warm up for a second, then measure; the median of the rounds."""
        body = backends.request_body(kind, through_gateway=through_gateway)
        _check(kind, post(url, body, backends.SECRET))
        script = write_script(self.folder / f"{kind}-{through_gateway}.lua", body, backends.SECRET)
        wrk(self.load_core, url, script, connections, 1)
        runs = [wrk(self.load_core, url, script, connections, self.options.seconds) for _ in range(self.options.rounds)]
        return Load(
            statistics.median(run.per_second for run in runs),
            statistics.median(run.p50 for run in runs),
            sum(run.answers for run in runs),
        )

    @contextmanager
    def _nginx(self, core: int, config: Path, port: int) -> Iterator[Pinned]:
        command = ["nginx", "-p", str(config.parent), "-c", str(config)]
        with pinned(core, command, port, None, config.parent / "start.log") as found:
            yield found


def _check(kind: str, answer: bytes) -> None:
    if kind == "claude":
        right = b'"object":"chat.completion"' in answer and backends.TEXT.encode() in answer  # its time is its own
    else:
        right = answer == (backends.plain_answer() if kind == "plain" else b"".join(backends.stream_events()))
    if not right:
        raise BenchError(f"the {kind} answer is not what the mock sent: {answer[:300]!r} … {answer[-200:]!r}")


def _address(port: int, kind: str) -> str:
    return f"http://127.0.0.1:{port}/{kind}/v1/chat/completions"


def measure(stage: Stage, kinds: Sequence[str], gateway: Pinned | None, nginx: Pinned) -> Iterator[Row]:
    """Throughput at many connections and processor time per answer, for each kind of traffic, nginx and gateway in turn."""
    names = {"plain": "plain requests", "stream": "streams, event by event", "blob": "streams, in one piece"}
    aims = {"plain": 0.20, "stream": 0.75}
    many = stage.options.connections
    for kind in kinds:
        ask = partial(stage.load, _address(stage.proxy, kind), kind, many, through_gateway=False)
        proxied, proxied_cpu = _with_cpu(nginx, ask)
        own = own_cpu = None
        if gateway is not None:
            url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
            loaded, own_cpu = _with_cpu(gateway, partial(stage.load, url, kind, many, through_gateway=True))
            own = loaded.per_second
        yield Row(f"{names[kind]} at {many}", proxied.per_second, own, "/s", aims.get(kind), aim_is_ratio=True)
        yield Row("  processor time each", proxied_cpu, own_cpu, "µs")


def _with_cpu(process: Pinned, run: Callable[[], Load]) -> tuple[Load, float]:
    # The warm-up is in the time and not in the count, so its share is taken out by the measured rate.
    before = process.cpu_seconds()
    found = run()
    spent = process.cpu_seconds() - before
    answers = found.answers + found.per_second
    return found, spent / answers * 1e6


def measure_latency(stage: Stage, gateway: Pinned | None) -> Row:
    """The median of one plain request at a time, less that of the mock without anything in between."""
    direct = stage.load(_address(stage.mock, "plain"), "plain", 1, through_gateway=False).p50
    proxied = stage.load(_address(stage.proxy, "plain"), "plain", 1, through_gateway=False).p50
    own = None
    if gateway is not None:
        url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
        own = (stage.load(url, "plain", 1, through_gateway=True).p50 - direct) * 1000
    return Row("p50 added at 1", (proxied - direct) * 1000, own, "ms", 0.25)


def run(options: Options, only: str | None, *, with_gateway: bool) -> Iterator[Row]:
    """Every row that was asked for. Raises BenchError."""
    if only == "admission" or (only is None and with_gateway):
        yield from measure_admission()
    if only == "translation" or (only is None and with_gateway):
        yield from measure_translation()
    if only == "admission" or (only == "translation" and not with_gateway):
        return
    require("nginx", "wrk", "taskset")
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        stage = Stage(Path(name), options)
        stack.enter_context(stage.mocks())
        if only in (None, "start") and with_gateway:
            yield measure_start(stage)
        if only in (None, "tracing") and with_gateway:
            yield from measure_tracing(stage)
        if only in (None, "translation") and with_gateway:
            yield measure_translated(stage)
        if only in ("start", "tracing", "translation"):
            return
        nginx = stack.enter_context(stage.nginx())
        gateway = stack.enter_context(stage.gateway()) if with_gateway else None
        kinds = {"plain": ("plain",), "stream": ("stream", "blob")}.get(only or "", ("plain", "stream", "blob"))
        yield from measure(stage, kinds, gateway, nginx)
        if only != "stream":
            yield measure_latency(stage, gateway)
        yield Row("RSS after the load", nginx.rss_mb(), gateway.rss_mb() if gateway else None, "MB", 80)


def measure_tracing(stage: Stage) -> Iterator[Row]:
    """Two gateways in turn, three times each: one that traces every request to a sink on the load's core, one that does not."""
    many = stage.options.connections
    with stage.gateway("untraced") as plain, stage.gateway("traced", traced=True) as traced:
        found: dict[Pinned, list[tuple[Load, float]]] = {plain: [], traced: []}
        for process in [plain, traced] * 3:
            url = f"http://127.0.0.1:{process.port}/v1/chat/completions"
            found[process].append(_with_cpu(process, partial(stage.load, url, "plain", many, through_gateway=True)))
    rates = {process: statistics.median(load.per_second for load, _ in runs) for process, runs in found.items()}
    costs = {process: statistics.median(cost for _, cost in runs) for process, runs in found.items()}
    name = f"all traced beside none, at {many}"
    yield Row(name, rates[plain], rates[traced], "/s", 0.70, aim_is_ratio=True, base="untraced")
    yield Row("  processor time each", costs[plain], costs[traced], "µs", base="untraced")


def measure_admission() -> Iterator[Row]:
    """In this process, without a socket: nginx has nothing like it."""
    found = asyncio.run(admission.timed())
    yield Row("hold and settle, five meters", None, found.hold, "µs", 10)
    yield Row("  all that money asks", None, found.request, "µs")


def measure_translation() -> Iterator[Row]:
    """In this process, without a socket: what Anthropic's format adds to the wire below."""
    found = asyncio.run(translation.timed())
    yield Row("translation of a request", None, found.request / 1000, "ms", 0.5)
    yield Row("  of one with tools, 29 messages", None, found.agent / 1000, "ms", 0.5)
    yield Row("  of an event of a stream", None, found.event, "µs", 20)
    yield Row("  of one, all in one piece", None, found.joined, "µs", 20)


def measure_translated(stage: Stage) -> Row:
    """What the median of one plain request at a time grows by when the same mock answers in Anthropic's format."""
    with stage.gateway("translated", claude=True) as process:
        url = f"http://127.0.0.1:{process.port}/v1/chat/completions"
        plain, claude = (stage.load(url, kind, 1, through_gateway=True).p50 for kind in ("plain", "claude"))
    return Row("  p50 added at 1, end to end", None, (claude - plain) * 1000, "ms", 0.5)


def measure_start(stage: Stage) -> Row:
    """The median of three starts, from exec to the first 200 of /readyz."""
    times = []
    for turn in range(3):
        with stage.gateway(f"start{turn}") as started:
            times.append(started.ready_after)
    return Row("exec to ready", None, statistics.median(times), "s", 0.8)


def table(rows: Sequence[Row]) -> str:
    """The rows as text, with the aims beside the results."""
    lines = [f"{'':34}{'nginx':>12}{'gateway':>12}  {'':4}{'ratio':>7}   aim"]
    for row in rows:
        cells = [f"{row.what:34}", _figure(row.nginx), _figure(row.gateway), f"  {row.unit:4}"]
        cells.append(f"{row.ratio:7.2f}" if row.ratio is not None and row.unit != "MB" else " " * 7)
        lines.append("".join(cells) + _aim(row))
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    if value is None:
        return f"{'-':>12}"
    return f"{value:>12,.0f}" if value >= 100 else f"{value:>12.2f}"


def _aim(row: Row) -> str:
    if row.aim is None:
        return ""
    got = row.ratio if row.aim_is_ratio else row.gateway
    aim = f"≥ {row.aim:.2f} of {row.base}" if row.aim_is_ratio else f"≤ {row.aim:g} {row.unit}"
    if got is None:
        return f"   {aim}"
    return f"   {aim}  {'reached' if (got >= row.aim if row.aim_is_ratio else got <= row.aim) else 'MISSED'}"


def main() -> int:
    """Parse the command line, measure, print; 1 when something could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5, help="for each measurement (default 5)")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of each; their median counts (default 1)")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", choices=["plain", "stream", "start", "tracing", "admission", "translation"])
    parser.add_argument("--no-limits", action="store_true", help="leave out the four meters on each key")
    parser.add_argument("--no-gateway", action="store_true", help="nginx alone, to try the machine")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    given = parser.parse_args()
    options = Options(given.seconds, given.connections, given.rounds, limits=not given.no_limits)
    rows: list[Row] = []
    try:
        for row in run(options, given.only, with_gateway=not given.no_gateway):
            rows.append(row)
            if given.json:
                print(json.dumps({**asdict(row), "ratio": row.ratio}), flush=True)
            else:
                print(f"  measured: {row.what.strip()}", file=sys.stderr, flush=True)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        if rows and not given.json:
            print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
