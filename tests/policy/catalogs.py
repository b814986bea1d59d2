"""Catalogs for tests: a policy written in Python, and what the bundled list is said to know."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from gateway.budget.money import Rates, tier_of
from gateway.policy.catalog import Catalog, Facts
from gateway.policy.loader import complete
from gateway.policy.schema import Backend, Document, Policy


def policy(*, disabled: Mapping[str, str] | None = None, **sections: Any) -> Policy:
    """The policy that a file with these sections stands for."""
    return complete(Document.model_validate(sections), disabled or {}, ())


def catalog(
    *, facts: Mapping[str, Facts] | None = None, disabled: Mapping[str, str] | None = None, **sections: Any
) -> Catalog:
    """A catalog over such a policy; `facts` are what the bundled list knows, by the backend's name of the model."""

    def known(_name: str, _backend: Backend, model: str) -> Facts:
        return (facts or {}).get(model, Facts())

    return Catalog(policy(disabled=disabled, **sections), known)


def backend(**fields: Any) -> dict[str, Any]:
    return {"base_url": "http://127.0.0.1:9/v1", **fields}


def rates(usd: str) -> Rates:
    """So many dollars for a million tokens, in or out."""
    return Rates((tier_of({"input": Decimal(usd), "output": Decimal(usd)}, per=10**6),))
