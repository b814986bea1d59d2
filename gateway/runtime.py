"""Everything that one set of policies makes, built as a whole and replaced as a whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.admission import TermsBook
from gateway.budget.managed import keyring_of
from gateway.budget.prices import PriceList
from gateway.budget.store import ManagedKey
from gateway.identity.keyring import Keyring
from gateway.policy.catalog import Catalog, Facts
from gateway.policy.schema import Backend as BackendSettings
from gateway.policy.schema import Policy
from gateway.upstream.backend import Backend, origin_of
from gateway.upstream.direct import open_wire
from gateway.upstream.litellm import open_litellm
from gateway.upstream.simulator import SimulatorWire
from gateway.upstream.slots import Slots
from gateway.upstream.wire import Wire


@dataclass(frozen=True, slots=True)
class Runtime:
    """What requests are served with. A request keeps the runtime it began with."""

    policy: Policy
    catalog: Catalog
    keyring: Keyring
    backends: Mapping[str, Backend]
    slots: Mapping[str, Slots]
    terms: TermsBook


def build_runtime(
    policy: Policy,
    prices: PriceList,
    managed: Sequence[ManagedKey] = (),
    old: Runtime | None = None,
    *,
    all_keys: bool = True,
    workers: int = 1,
) -> Runtime:
    """Objects for these policies and managed keys; a backend whose settings did not change goes on as it is.

    Without `all_keys`, the managed ones could not be read yet. Of a backend's slots and queue this is the part of one
    of so many `workers`.
    """
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
            size = -(-settings.queue.size // workers)
            slots[name] = Slots(name, max(1, settings.slots // workers), size, settings.queue.timeout)
    catalog = Catalog(policy, lambda _, backend, model: facts_of(prices, backend, model))
    return Runtime(policy, catalog, keyring_of(policy, managed, complete=all_keys), backends, slots, TermsBook(policy))


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


def _same_backend(name: str, old: Policy, new: Policy) -> bool:
    return old.backends[name] == new.backends[name] and old.defaults.breaker == new.defaults.breaker


def _wire(name: str, settings: BackendSettings) -> Wire:
    if settings.provider == "simulator" and settings.simulator is not None:
        return SimulatorWire(name, settings.simulator)
    if settings.provider == "openai":
        return open_wire(origin_of(settings))
    return open_litellm(name, settings, open_wire)
