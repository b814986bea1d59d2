"""One backend as it runs: its wire, its keys, how it is doing and how much of it is in use."""

from collections import deque
from collections.abc import Sequence
from urllib.parse import urlsplit

from gateway.formats.request import RESPONSES
from gateway.policy.router import Obstacle
from gateway.policy.schema import Backend as BackendSettings
from gateway.policy.schema import Breaker as BreakerSettings
from gateway.upstream.breaker import Breaker, State
from gateway.upstream.retry import KEY_REST, Failure, Kind, RetryBudget
from gateway.upstream.wire import Header, Origin, Wire

RATE_LIMITED = "rate limited"
_NEW_LIMIT = ("api.openai.com",)  # where `max_tokens` is refused by some models; elsewhere it is what all understand
_SAMPLES, _FEWEST_SAMPLES = 200, 20
_DECAY = 10.0  # seconds in which a latency peak loses two thirds of its height


class ApiKey:
    """A backend's own credential, and until when it rests. Times are of the monotonic clock.

    A backend that needs no key has one without a secret, its own: what one backend refuses says nothing of another.
    """

    __slots__ = ("headers", "label", "rests_until", "why")

    def __init__(self, secret: str | None, label: str) -> None:
        self.headers: Sequence[Header] = ((b"authorization", b"Bearer " + secret.encode()),) if secret else ()
        self.label = label
        self.rests_until = 0.0
        self.why = ""

    def __repr__(self) -> str:
        return f"<ApiKey {self.label}>"


class Backend:
    """State that outlives a request. It satisfies `policy.router.Health`.

    `speaks` is its provider, with RESPONSES added where it has `/responses`.
    """

    def __init__(self, name: str, settings: BackendSettings, breaker: BreakerSettings, wire: Wire) -> None:
        self.name = name
        self.settings = settings
        self.wire = wire
        parts = urlsplit(settings.base_url or f"simulator://{name}")
        self.prefix = parts.path.rstrip("/").encode()
        self.query = parts.query.encode()
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.speaks = _speaks(settings, self.host)
        self.output_field = "max_completion_tokens" if self.host in _NEW_LIMIT else "max_tokens"
        self.breaker = Breaker(breaker)
        self.retries = RetryBudget()
        secrets = settings.api_keys or (None,)
        self.keys = [ApiKey(secret, f"{name}#{n}") for n, secret in enumerate(secrets, 1)]
        self.rests_until = 0.0
        self.busy = 0
        self.last_failure: Kind | None = None
        self._next_key = 0
        self._latency = 0.0
        self._latency_at = 0.0
        self._first_tokens: deque[float] = deque(maxlen=_SAMPLES)

    def obstacle(self, now: float) -> Obstacle | None:
        """Why it should not be asked at `now`; None when it may."""
        if now < self.rests_until:
            return Obstacle(self.rests_until - now, "it asked to be left alone", sure=True)
        if self.breaker.state(now) is State.OPEN:
            return Obstacle(self.breaker.open_until - now, "its breaker is open", sure=False)
        if self.keys[0].rests_until and all(now < key.rests_until for key in self.keys):
            key = min(self.keys, key=lambda key: key.rests_until)
            why = f"no api key of it is usable ({key.why})"
            return Obstacle(key.rests_until - now, why, sure=key.why == RATE_LIMITED, shut=True)
        return None

    @property
    def latency(self) -> float:
        """Seconds to the first token, peak-EWMA."""
        return self._latency

    def slow_after(self) -> float | None:
        """Seconds within which 95 of 100 of its latest answers began; None while too few are known."""
        if len(self._first_tokens) < _FEWEST_SAMPLES:
            return None
        ordered = sorted(self._first_tokens)
        return ordered[int(len(ordered) * 0.95)]

    def pick_key(self, now: float) -> ApiKey | None:
        """The next of its keys that does not rest."""
        for _ in self.keys:
            self._next_key = (self._next_key + 1) % len(self.keys)
            key = self.keys[self._next_key]
            if now >= key.rests_until:
                return key
        return None

    def key_labelled(self, label: str) -> ApiKey | None:
        """The key with this label, whether it rests or not; None when it has none."""
        return next((key for key in self.keys if key.label == label), None)

    def answered(self, seconds: float, now: float) -> None:
        """It gave its first token after `seconds`: a peak counts at once, an improvement slowly (as Finagle does)."""
        self._first_tokens.append(seconds)
        if seconds >= self._latency:
            self._latency = seconds
        else:
            share = min(1.0, (now - self._latency_at) / _DECAY)
            self._latency += (seconds - self._latency) * max(share, 0.05)
        self._latency_at = now

    def rest(self, failure: Failure, key: ApiKey, now: float) -> None:
        """Leave it, or the key that was refused, alone for as long as the failure says."""
        self.last_failure = failure.kind
        if failure.kind in (Kind.AUTH, Kind.NO_QUOTA):
            key.rests_until = now + (failure.retry_after or KEY_REST)
            key.why = "refused" if failure.kind is Kind.AUTH else "out of quota"
        elif failure.kind is Kind.RATE_LIMITED and failure.retry_after:
            if len(self.keys) > 1:
                key.rests_until = now + failure.retry_after
                key.why = RATE_LIMITED
            else:
                self.rests_until = now + failure.retry_after

    def __repr__(self) -> str:
        return f"<Backend {self.name} {self.breaker!r} busy={self.busy} {self.wire!r}>"


def _speaks(settings: BackendSettings, host: str) -> str:
    """Its provider, with RESPONSES where it has `/responses`: as its option says, else as OpenAI itself has."""
    said = settings.options.get("responses", "true" if host in _NEW_LIMIT else "false")
    return settings.provider + RESPONSES if settings.provider == "openai" and said == "true" else settings.provider


def origin_of(settings: BackendSettings) -> Origin:
    """Where a backend's wire leads."""
    parts = urlsplit(settings.base_url or "")
    return Origin(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=parts.port or (443 if parts.scheme == "https" else 80),
        ca_file=settings.ca_file,
        proxy=settings.proxy,
        http2=settings.http2,
    )
