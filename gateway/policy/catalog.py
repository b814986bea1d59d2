"""Every name that can be asked for, resolved once per policy: alias, then task, then model, then passthrough."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

from gateway.budget.money import Rates, price_note, rates_of
from gateway.errors import InvalidRequest, NotFound, PermissionDenied
from gateway.identity.principal import Principal
from gateway.policy.schema import Backend, Balance, Breaker, Hedge, Model, Policy, Price, Retry, Timeouts
from gateway.policy.schema import Route as RouteSettings

TASK = "task:"
AUTO = "auto"
DEFAULT_TASK = "general"
_PASSTHROUGH_KEPT = 1024
_COMMON_CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model from its policy or the bundled list; sizes in tokens, None where nobody says."""

    rates: Rates | None = None
    price: str = ""  # the rates as a reader wants them, for usage records
    context: int | None = None
    max_output: int | None = None
    needs_limit: bool = False  # the provider must be told a limit, and `max_output` stands in the policies
    prefill: bool = False
    mode: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A model at a backend. `model` is the backend's name for it, `label` the name that metrics may show."""

    name: str
    label: str
    backend: str
    model: str
    local: bool
    off: str
    facts: Facts
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """One place in a chain: targets to try in an order that `by` decides anew for each request."""

    name: str
    targets: tuple[Target, ...]
    by: Balance = "round_robin"
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """What a name leads to. `name` is shown to the client and held to allow-lists, `label` stands in metrics."""

    name: str
    label: str
    kind: Literal["alias", "task", "model", "passthrough"]
    chain: tuple[Group, ...]
    timeouts: Timeouts
    retry: Retry
    breaker: Breaker
    hedge: Hedge | None = None
    on_budget: Literal["degrade", "reject"] = "reject"
    local_only: bool = False
    task: str = ""

    @property
    def targets(self) -> Iterator[Target]:
        """Every target, in the order of the chain."""
        return (target for group in self.chain for target in group.targets)


FactsOf = Callable[[str, Backend, str], Facts]


class Catalog:
    """The names of one policy. `facts_of(backend_name, backend, model)` tells what the bundled list knows."""

    def __init__(self, policy: Policy, facts_of: FactsOf) -> None:
        self._policy = policy
        self._facts_of = facts_of
        self._targets = {name: self._target(name, name, model) for name, model in policy.models.items()}
        contexts = [target.facts.context for target in self._targets.values() if target.facts.context]
        self.smallest_context = min([_COMMON_CONTEXT, *contexts])  # tokens; fewer bytes than that fit everywhere
        self._routes: dict[str, Route] = {}
        self._passed: dict[str, Route] = {}
        for name in policy.models:
            self._routes[name] = self._plain(name, "model", (self._targets[name],), label=name)
        for name, settings in policy.tasks.items():
            self._routes[TASK + name] = self._route(TASK + name, "task", settings, task=name)
        for name, settings in policy.aliases.items():
            self._routes[name] = self._route(name, "alias", settings)

    def find(self, name: str, task: str | None, principal: Principal) -> Route:
        """The route that this principal means by this name.

        Raises NotFound with the near names that it may use, PermissionDenied, or InvalidRequest for an unknown task.
        """
        if name == AUTO:
            asked = TASK + (task or DEFAULT_TASK)
            if asked not in self._routes:
                raise self._no_task(task, principal)
        else:
            asked = name
        route = self._routes.get(asked) or self._passed.get(asked) or self._pass(asked)
        if route is None:
            raise self._unknown(asked, principal)
        if not principal.may_use(asked):
            raise PermissionDenied(
                f"The key {principal.name!r} may not use {asked!r}; {self._hint(asked, principal)}", param="model"
            )
        return route

    def visible(self, principal: Principal) -> list[Route]:
        """Every declared name that this principal may use: aliases, tasks and models, in that order."""
        order = {"alias": 0, "task": 1, "model": 2, "passthrough": 3}
        found = [route for name, route in self._routes.items() if principal.may_use(name)]
        return sorted(found, key=lambda route: order[route.kind])

    def targets(self) -> Mapping[str, Target]:
        """Every declared model."""
        return self._targets

    def _route(self, name: str, kind: Literal["alias", "task"], settings: RouteSettings, task: str = "") -> Route:
        chain = tuple(
            Group(
                name=f"{name}/{position}",
                targets=tuple(self._targets[model] for model in step.any),
                by=step.by,
                weights=tuple(step.weights.get(model, 1.0) for model in step.any),
            )
            for position, step in enumerate(settings.chain)
        )
        defaults = self._policy.defaults
        return Route(
            name=name,
            label=name,
            kind=kind,
            chain=chain,
            timeouts=settings.timeouts or defaults.timeouts,
            retry=settings.retry or defaults.retry,
            breaker=settings.breaker or defaults.breaker,
            hedge=settings.hedge,
            on_budget=settings.on_budget or "reject",
            local_only=settings.data == "local",
            task=task,
        )

    def _plain(
        self, name: str, kind: Literal["model", "passthrough"], targets: tuple[Target, ...], *, label: str
    ) -> Route:
        defaults = self._policy.defaults
        return Route(
            name=name,
            label=label,
            kind=kind,
            chain=tuple(Group(target.name, (target,)) for target in targets),
            timeouts=defaults.timeouts,
            retry=defaults.retry,
            breaker=defaults.breaker,
        )

    def _target(self, name: str, label: str, model: Model) -> Target:
        backend = self._policy.backends[model.backend]
        listed = self._facts_of(model.backend, backend, model.model)
        rates = rates_of(model.price) if model.price is not None else listed.rates
        if rates is None and (backend.local or backend.provider == "simulator"):
            rates = rates_of(Price())
        facts = Facts(
            rates=rates,
            price=price_note(rates) if rates is not None else "",
            context=model.context or listed.context,
            max_output=model.max_output or listed.max_output,
            needs_limit=model.max_output is not None and backend.provider not in ("openai", "simulator"),
            prefill=model.prefill,
            mode=model.mode or listed.mode,
        )
        off = self._policy.disabled.get(model.backend, "")
        return Target(name, label, model.backend, model.model, backend.local, off, facts, model.tags)

    def _pass(self, name: str) -> Route | None:
        """A route for a name that only a backend's `passthrough` knows; enabled backends stand before disabled ones.

        `openai/gpt-4o` is `gpt-4o` at the backend `openai`, else that whole name at one that lets it pass.
        """
        prefix, _, rest = name.partition("/")
        found = self._passing(name, [prefix], rest) if prefix in self._policy.backends else []
        found = found or self._passing(name, self._policy.backends, name)
        if not found:
            return None
        found.sort(key=lambda target: bool(target.off))
        route = self._plain(name, "passthrough", tuple(found), label="passthrough")
        if len(self._passed) >= _PASSTHROUGH_KEPT:
            self._passed.pop(next(iter(self._passed)))
        self._passed[name] = route
        return route

    def _passing(self, name: str, backends: Iterable[str], model: str) -> list[Target]:
        """The model at each of these backends that lets its name pass."""
        return [
            self._target(name, f"{backend}/*", Model(backend=backend, model=model))
            for backend in backends
            if model and any(fnmatchcase(model, glob) for glob in self._policy.backends[backend].passthrough)
        ]

    def _no_task(self, task: str | None, principal: Principal) -> InvalidRequest | NotFound:
        known = [name.removeprefix(TASK) for name in self._routes if name.startswith(TASK) and principal.may_use(name)]
        listed = ", ".join(sorted(known)) or "none"
        if task is None:
            return NotFound(
                f"model 'auto' needs the header `x-gateway-task`, since no task {DEFAULT_TASK!r} is defined; "
                f"tasks that this key may use: {listed}.",
                param="model",
            )
        return InvalidRequest(
            f"There is no task {task!r} (header `x-gateway-task`); tasks that this key may use: {listed}.",
            param="x-gateway-task",
        )

    def _unknown(self, asked: str, principal: Principal) -> NotFound:
        return NotFound(f"There is no model {asked!r}; {self._hint(asked, principal)}", param="model")

    def _hint(self, asked: str, principal: Principal) -> str:
        names = [route.name for route in self.visible(principal)]
        near = get_close_matches(asked, names, n=3, cutoff=0.5)
        if near:
            return f"did you mean {' or '.join(repr(name) for name in near)}?"
        if not names:
            return "this key may use no model at all; ask whoever runs this gateway."
        more = " and more (GET /v1/models lists all)" if len(names) > 8 else ""
        return f"this key may use {', '.join(names[:8])}{more}."
