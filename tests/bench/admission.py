"""Times the admission of a request in this process: all of it in memory, since the grants are there."""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

from gateway.admission import Admission, TermsBook
from gateway.budget.escrow import Escrow
from gateway.budget.meter import MeterLimit
from gateway.budget.sqlite import SqliteStore
from gateway.budget.tokenizer import Tokenizers
from gateway.formats.chat import parse_chat
from gateway.formats.usage import Usage
from gateway.identity.principal import Principal, principal_of
from gateway.policy.catalog import Catalog, Facts, Target
from gateway.policy.loader import complete
from gateway.policy.router import FIRST, IN, Candidate
from gateway.policy.schema import Document

REQUESTS = 20_000
_BODY = {"model": "m", "max_tokens": 256, "messages": [{"role": "user", "content": "Say why. " * 20}]}
_POLICIES = {
    "backends": {"b": {"base_url": "http://127.0.0.1:9/v1"}},
    "models": {"m": {"backend": "b", "model": "m", "context": 128_000, "price": {"input": 0.15, "output": 0.6}}},
    "keys": {
        "bench": {
            "hash": f"sha256:{'0' * 64}",
            "limits": [
                {"usd": 1_000_000, "per": "day"},
                {"usd": 9_000_000, "per": "month"},
                {"requests": 1_000_000_000, "per": "minute"},
                {"tokens": 1_000_000_000_000, "per": "minute"},
                {"concurrent": 10_000},
            ],
        }
    },
}


@dataclass(frozen=True, slots=True)
class Timed:
    """Microseconds for a request under five meters, the median of several rounds.

    `hold` is to hold and to settle; `request` is all that money asks of a request: its terms, the bound of its input,
    the hold, the settlement, and the headers of its answer.
    """

    hold: float
    request: float


async def timed(rounds: int = 5) -> Timed:
    """Measure both in this process."""
    policy = complete(Document.model_validate(_POLICIES), {}, ())
    principal = principal_of("bench", policy.keys["bench"], team_allow=None, zone=ZoneInfo("UTC"))
    target = next(Catalog(policy, lambda *_: Facts()).find("m", None, principal).targets)
    book = TermsBook(policy)
    limits = [limit for limit, _ in book.terms(principal, target).limits]
    assert len(limits) == 5
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "bench.db")
        await store.open()
        escrow = Escrow(store, "bench")
        large = [(limit, 5_000 if limit.meter.unit == "concurrent" else limit.amount // 100) for limit in limits]
        escrow.release(await escrow.hold("grants", large))  # from here on they are there
        try:
            return Timed(
                _hold_time(escrow, limits, rounds), await _request_time(escrow, book, principal, target, rounds)
            )
        finally:
            await escrow.aclose()
            await store.close()


def _hold_time(escrow: Escrow, limits: Sequence[MeterLimit], rounds: int) -> float:
    amounts = {"usd": 300_000, "requests": 1, "tokens": 600, "concurrent": 1}
    charges = [(limit, amounts[limit.meter.unit]) for limit in limits]
    actual = {"usd": 120_000, "tokens": 240, "input_tokens": 40, "output_tokens": 200}
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(REQUESTS):
            hold = escrow.try_hold("request", charges)
            assert hold is not None
            escrow.begin(hold)
            escrow.settle(hold, actual)
        times.append(time.perf_counter() - began)
    return statistics.median(times) / REQUESTS * 1e6


async def _request_time(escrow: Escrow, book: TermsBook, principal: Principal, target: Target, rounds: int) -> float:
    request = parse_chat(json.dumps(_BODY).encode())
    candidate = Candidate(target, IN, FIRST)
    usage = Usage(input_tokens=40, output_tokens=200)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(REQUESTS):
            admission = Admission(escrow, book, Tokenizers(), principal, request, "request", degrade=False)
            await admission.admit(candidate)
            admission.sending()
            admission.settle(usage, 126_000)
            admission.headers()
        times.append(time.perf_counter() - began)
    return statistics.median(times) / REQUESTS * 1e6
