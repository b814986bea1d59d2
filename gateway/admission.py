"""What one request may spend: its limits, how much output they afford, one hold, and what it came to in the end."""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.budget.escrow import Escrow
from gateway.budget.hold import Hold
from gateway.budget.meter import MeterLimit, limits_of
from gateway.budget.money import affordable_output, format_usd, worst_case
from gateway.budget.refusal import Refused, to_error
from gateway.budget.store import StoreDown
from gateway.budget.tokenizer import Tokenizers
from gateway.errors import GatewayError, PermissionDenied
from gateway.formats.request import Request
from gateway.formats.tokens import upper_bound
from gateway.formats.usage import Usage
from gateway.identity.principal import Principal
from gateway.policy.catalog import Facts, Target
from gateway.policy.router import Candidate
from gateway.policy.schema import Policy
from gateway.upstream.dispatch import Skip
from gateway.upstream.wire import Header

LEAST_OUTPUT = 16  # tokens: an answer shorter than that is worth nothing, so the request is refused instead
UNKNOWN_OUTPUT = 16_384  # tokens, where neither the client nor the policy nor the list says what a model writes at most
UNKNOWN_INPUT = 1_000_000  # tokens, where the bound has no end (a stored prompt) and the model's context is unknown
SHARE = 4  # a request without a limit of its own takes at most this part of what remains
UNITS = ("usd", "tokens", "input_tokens", "output_tokens", "requests", "concurrent")
_TRIES = 3
_RATE_HEADERS = (
    (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
)


@dataclass(frozen=True, slots=True)
class Terms:
    """The limits on one key's requests to one model, each with the place of its unit in `UNITS`.

    `counts` are those on which the size of a request counts; of the `shared` of them a request without a limit of its
    own takes only a part. `shown` are those that headers tell of: money, requests, tokens. `bounds_output`: the backend
    must be held to what the hold pays for.
    """

    limits: tuple[tuple[MeterLimit, int], ...]
    counts: tuple[MeterLimit, ...]
    shared: tuple[bool, ...]  # for each of the limits
    shown: "Shown"
    in_dollars: bool
    priced: bool
    bounds_output: bool

    @classmethod
    def of(cls, limits: tuple[MeterLimit, ...], target: Target) -> "Terms":
        """Sort the limits by what they need to know."""
        rates = target.facts.rates
        free = rates is not None and rates.free
        sized = (
            ("tokens", "output_tokens", "input_tokens") if free else ("usd", "tokens", "output_tokens", "input_tokens")
        )
        hard = [limit for limit in limits if not limit.soft]
        counts = tuple(limit for limit in hard if limit.meter.unit in sized)
        return cls(
            limits=tuple((limit, UNITS.index(limit.meter.unit)) for limit in limits),
            counts=counts,
            shared=tuple(limit in counts and limit.meter.unit != "input_tokens" for limit in limits),
            shown=shown_of(limits),
            in_dollars=any(limit.meter.unit == "usd" for limit in hard),
            priced=rates is not None,
            bounds_output=any(limit.meter.unit != "input_tokens" for limit in counts),
        )


class TermsBook:
    """The terms of every key and model of one set of policies, made when they are first asked for."""

    _KEPT = 10_000

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._known: dict[tuple[str, str], Terms] = {}
        self._interned: dict[MeterLimit, MeterLimit] = {}

    def terms(self, principal: Principal, target: Target) -> Terms:
        """What holds for this principal at this target."""
        known = self._known.get((principal.name, target.name))
        if known is None:
            if len(self._known) >= self._KEPT:
                self._known.clear()
                self._interned.clear()
            limits = self._limits(principal, target.backend, target.name)
            known = self._known[principal.name, target.name] = Terms.of(limits, target)
        return known

    def own(self, principal: Principal) -> tuple[MeterLimit, ...]:
        """The limits on a principal wherever its requests go: its own, its team's, and those on everything."""
        return self._limits(principal, None, None)

    def _limits(self, principal: Principal, backend: str | None, model: str | None) -> tuple[MeterLimit, ...]:
        found = limits_of(self._policy, principal.name, principal.team, backend, model, principal.limits)
        return tuple(self._interned.setdefault(limit, limit) for limit in found)


class Admission:
    """One request's dealings with its limits: one hold at a time, settled or released exactly once.

    `clamped` says that a budget lowered the output. `charged` are nano-dollars, None before it is settled.
    """

    __slots__ = (
        "_book",
        "_bound",
        "_bound_for",
        "_counted_for",
        "_degrade",
        "_escrow",
        "_hold",
        "_hold_id",
        "_parts",
        "_principal",
        "_request",
        "_terms",
        "_tokenizers",
        "clamped",
        "held",
        "held_at",
        "permitted",
        "target",
    )

    def __init__(
        self,
        escrow: Escrow,
        book: TermsBook,
        tokenizers: Tokenizers,
        principal: Principal,
        request: Request,
        hold_id: str,
        *,
        degrade: bool,
        parts: int = 0,
    ) -> None:
        self._escrow = escrow
        self._book = book
        self._tokenizers = tokenizers
        self._counted_for: str | None = None
        self._principal = principal
        self._request = request
        self._degrade = degrade
        self._hold_id = hold_id
        self._hold: Hold | None = None
        self._parts = parts
        self._terms: Terms | None = None
        self._bound = 0
        self._bound_for: str | None = None
        self.clamped = False
        self.permitted = 0
        self.held = 0
        self.held_at: float | None = None
        self.target: Target | None = None

    async def admit(self, candidate: Candidate) -> int | None:
        """Hold the most that a try at this candidate may cost; the output limit to send, None to leave it as it is.

        Raises Skip when it does not fit and another candidate may, else the GatewayError for the client.
        """
        target = candidate.target
        terms = self._book.terms(self._principal, target)
        if not terms.limits and self._hold is None:
            return None
        if terms.in_dollars and not terms.priced:
            raise Skip(_no_price(target, per_token=self._request.extent.writes or not self._request.max_output))
        self._terms, self.target = terms, target
        bound = self._input_bound(target) if terms.counts else 0
        if self._fits_at_once(terms, target, bound):
            return self._to_send(terms, target, self.permitted)
        for tries in range(1, _TRIES + 1):
            output = await self._output(terms, target, bound)
            if output < most_output(self._request.max_output, target.facts) and await self._sharpen(target, bound):
                bound = self._bound
                output = await self._output(terms, target, bound)
            try:
                await self._take(self._charges(terms, target, bound, output))
            except Refused as refused:
                if tries < _TRIES and refused.reason != "store_down" and await self._sharpen(target, bound):
                    bound = self._bound
                    continue
                if tries < _TRIES and refused.reason != "store_down" and self._could_lower(terms, refused):
                    continue
                raise self._refusal(refused) from None
            break
        return self._to_send(terms, target, output)

    def sending(self) -> None:
        """The request goes out now: from here on it counts where requests per time are limited."""
        if self._hold is not None:
            self._escrow.begin(self._hold)

    def settle(self, usage: Usage, cost: int | None) -> None:
        """The hold becomes what was used; `cost` in nano-dollars."""
        hold, self._hold = self._hold, None
        if hold is not None:
            self.held_at = hold.taken
            self._escrow.settle(
                hold,
                {
                    "usd": cost or 0,
                    "tokens": usage.total_tokens,
                    "input_tokens": usage.input_tokens,
                    "output_tokens": usage.output_tokens,
                },
            )

    def release(self) -> None:
        """Nothing was produced: it costs nothing."""
        hold, self._hold = self._hold, None
        if hold is not None:
            self._escrow.release(hold)

    def rival(self) -> "Admission":
        """A hold of its own for the same request at a second candidate; as a request it counts once."""
        hold_id = f"{self._hold_id}/hedge"
        return Admission(
            self._escrow,
            self._book,
            self._tokenizers,
            self._principal,
            self._request,
            hold_id,
            degrade=self._degrade,
            parts=1,
        )

    def give_up_unless(self, *, answered: bool) -> None:
        """Release what is still held, unless an answer came that will settle it."""
        if not answered:
            self.release()

    def go_on(self, rest: Request) -> None:
        """The request goes on elsewhere as `rest` under a new hold, after the first was settled."""
        self._parts += 1
        self._request = rest
        self._bound_for = None
        self._counted_for = None

    def most(self) -> Usage | None:
        """The usage that the hold pays for, for what nobody reported; None where the size does not count."""
        if self._hold is None or self._terms is None or not self._terms.counts:
            return None
        return self._request.extent.most(self._bound, self.permitted * self._request.n)

    def bounded(self, usage: Usage, sure: int) -> Usage:
        """An estimate, lowered to what the hold pays for: the backend was told its limit, so the count must be wrong.

        `sure` output tokens were made all the same, by a backend that ignores its limit.
        """
        most = self.most()
        if most is None:
            return usage
        asked = min(usage.input_tokens, most.input_tokens)
        made = min(usage.output_tokens, max(most.output_tokens, sure))
        return Usage(input_tokens=asked, output_tokens=made, estimated=True)

    def headers(self) -> list[Header]:
        """`x-gateway-budget-remaining-usd`, `x-ratelimit-…` for the tightest of such limits, `x-gateway-clamped`."""
        found: list[Header] = [(b"x-gateway-clamped", b"true")] if self.clamped else []
        if self._terms is not None:
            found += limit_headers(self._escrow, self._terms.shown)
        return found

    def _fits_at_once(self, terms: Terms, target: Target, bound: int) -> bool:
        """The usual case: what is at hand covers all that the client, or else the model, may write."""
        own = self._request.max_output
        top = own or target.facts.max_output
        if top is None or self._hold is not None or self._parts:
            return False
        charges = self._charges(terms, target, bound, top)
        if own is None and not self._is_within_share(terms, charges):
            return False
        self._hold = self._escrow.try_hold(self._hold_id, charges)
        self.permitted = top
        self.clamped = False
        return self._hold is not None

    def _is_within_share(self, terms: Terms, charges: Sequence[tuple[MeterLimit, int]]) -> bool:
        """Whether no limit gives up more than a SHARE-th of what remains of it."""
        remaining = self._escrow.remaining
        for (limit, amount), is_shared in zip(charges, terms.shared, strict=True):
            if is_shared and ((left := remaining(limit)) is None or amount > left // SHARE):
                return False
        return True

    async def _take(self, charges: Sequence[tuple[MeterLimit, int]]) -> None:
        if self._hold is None:
            hold_id = f"{self._hold_id}/{self._parts}" if self._parts else self._hold_id
            self._hold = self._escrow.try_hold(hold_id, charges) or await self._escrow.hold(hold_id, charges)
        elif not self._escrow.try_resize(self._hold, charges):
            await self._escrow.resize(self._hold, charges)

    def _charges(self, terms: Terms, target: Target, bound: int, output: int) -> list[tuple[MeterLimit, int]]:
        """The most a try may count on each limit; a request that goes on elsewhere counts once as a request."""
        written = output * self._request.n
        rates = target.facts.rates
        self.held = 0
        if rates is not None and terms.counts:
            self.held = worst_case(bound, written, rates, self._request.extent.beside)
        amounts = (self.held, bound + written, bound, written, 0 if self._parts else 1, 1)
        return [(limit, amounts[place]) for limit, place in terms.limits]

    async def _output(self, terms: Terms, target: Target, bound: int) -> int:
        """Tokens that each choice may have: what was asked for, lowered to what the tightest limit affords."""
        request, facts = self._request, target.facts
        top = most_output(request.max_output, facts)
        if not terms.counts or not request.extent.writes:
            self.permitted = top
            return top
        if any(self._escrow.remaining(limit) is None for limit in terms.counts):
            try:
                await self._escrow.survey(terms.counts)
            except StoreDown:
                self.permitted = top  # the hold itself will say so, or `store_down: allow` lets it pass
                return top
        least = min(top, LEAST_OUTPUT)
        output = top
        for limit in terms.counts:
            left = self._escrow.remaining(limit)
            if left is None or output <= least:
                continue
            share = left if request.max_output is not None else left // SHARE
            afforded = self._affords(limit, share, bound, target)
            if afforded < least:
                afforded = min(least, self._affords(limit, left, bound, target))
            output = min(output, afforded)
        self.permitted = max(output, least)  # too little is left for anything: ask, and be told why it is refused
        return self.permitted

    def _affords(self, limit: MeterLimit, left: int, bound: int, target: Target) -> int:
        unit, rates = limit.meter.unit, target.facts.rates
        if unit == "usd" and rates is not None:
            return affordable_output(left, bound, rates) // self._request.n
        if unit == "input_tokens":
            return UNKNOWN_OUTPUT * 1000
        return max(0, left - (bound if unit == "tokens" else 0)) // self._request.n

    def _could_lower(self, terms: Terms, refused: Refused) -> bool:
        text = self._request.extent.writes
        return text and refused.limit in terms.counts and self.permitted > min(LEAST_OUTPUT, self.permitted)

    def _to_send(self, terms: Terms, target: Target, output: int) -> int | None:
        """The limit to send, so that nothing is made that the hold does not pay for.

        None where the client's own says it, or the model writes no more by itself. A translated provider must be told a
        limit, and would be told the bundled list's instead of the policies'.
        """
        if not terms.bounds_output or not self._request.extent.writes:
            return None
        own = self._request.max_output
        if own is not None:
            self.clamped = output < own
            return output if self.clamped else None
        self.clamped = target.facts.max_output is None or output < target.facts.max_output
        return output if self.clamped or target.facts.needs_limit else None

    def _refusal(self, refused: Refused) -> GatewayError | Skip:
        error = to_error(refused)
        elsewhere = refused.limit.meter.scope in ("backend", "model")
        return Skip(error) if elsewhere or self._degrade else error

    async def _sharpen(self, target: Target, bound: int) -> bool:
        """Near a limit, count the prompt instead of its bytes; whether that made the bound smaller."""
        if not bound or self._counted_for == target.model or self._request.extent.input_bound is not None:
            return False
        self._counted_for = target.model
        counted = await self._tokenizers.bound(self._request, target.model)
        if counted is None or counted >= bound:
            return False
        self._bound = counted
        return True

    def _input_bound(self, target: Target) -> int:
        if self._bound_for != target.model:
            request, extent = self._request, self._request.extent
            most = (target.facts.context or UNKNOWN_INPUT) * extent.prompts
            found = extent.input_bound
            if found is None:
                found = upper_bound(request.doc, len(request.raw), target.model)
            self._bound = min(found, most)
            self._bound_for = target.model
        return self._bound


def most_output(asked: int | None, facts: Facts) -> int:
    """The output tokens that a choice may have when no budget lowers them: the client's limit, else the model's."""
    return asked if asked is not None else facts.max_output or facts.context or UNKNOWN_OUTPUT


Shown = tuple[tuple[MeterLimit, ...], tuple[MeterLimit, ...], tuple[MeterLimit, ...]]


def shown_of(limits: Sequence[MeterLimit]) -> Shown:
    """The limits that headers tell of: on money, on requests, on tokens."""
    units = (("usd",), ("requests",), ("tokens", "input_tokens", "output_tokens"))
    money, requests, tokens = (tuple(limit for limit in limits if limit.meter.unit in names) for names in units)
    return money, requests, tokens


def limit_headers(escrow: Escrow, shown: Shown) -> list[Header]:
    """What is left of the tightest money, request and token limits, as an SDK or a person may read it."""
    found: list[Header] = []
    money, requests, tokens = shown
    if money and (tightest := _tightest(escrow, money)) is not None:
        found.append((b"x-gateway-budget-remaining-usd", format_usd(tightest[1]).encode()))
    for (amount, remaining, resets), limits in zip(_RATE_HEADERS, (requests, tokens), strict=True):
        if not limits or (tightest := _tightest(escrow, limits)) is None:
            continue
        limit, left = tightest
        found.append((amount, b"%d" % limit.amount))
        found.append((remaining, b"%d" % left))
        if (reset := escrow.resets_in(limit)) is not None:
            found.append((resets, duration_text(reset)))
    return found


def duration_text(seconds: float) -> bytes:
    """A time as OpenAI writes it in its headers: `350ms`, `1.5s`, `6m0s`, `2h3m4s`."""
    if seconds < 1:
        return b"%dms" % round(seconds * 1000)
    if seconds < 60:
        return (b"%.3f" % seconds).rstrip(b"0").rstrip(b".") + b"s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return b"%dm%ds" % (minutes, rest)
    return b"%dh%dm%ds" % (*divmod(minutes, 60), rest)


def _tightest(escrow: Escrow, limits: Sequence[MeterLimit]) -> tuple[MeterLimit, int] | None:
    tightest: tuple[MeterLimit, int] | None = None
    for limit in limits:
        left = escrow.remaining(limit)
        if left is not None and (tightest is None or left < tightest[1]):
            tightest = (limit, left)
    return tightest


def _no_price(target: Target, *, per_token: bool) -> PermissionDenied:
    """The error says which line to add; what is sold by the picture or second can be given a price per request."""
    line = "`price: {input: 0.00, output: 0.00}` (dollars per million tokens)"
    if not per_token:
        line = "`price: {request: 0.00}` (dollars per request), " + line
    return PermissionDenied(
        f"Nobody knows what model {target.name!r} at backend {target.backend!r} costs, and this key has a limit in "
        f"dollars; add to the policies, under models: {target.name}: {line}, or `price: free`.",
        param="model",
    )
