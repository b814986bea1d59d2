"""Names that point at each other: every one must exist, be said once, and be able to be asked for."""

import re
from collections.abc import Iterable, Iterator

from gateway.policy.messages import near
from gateway.policy.positions import Entry, Fields, Items, Node, Place, Problem, Scalar
from gateway.policy.providers import OWN, TRANSLATED, why_refused
from gateway.policy.router import fits

_HEADER_NAME = re.compile(r"[\x21-\x7e]+")  # these names travel in response headers
_ROUTES = {"aliases": "alias", "tasks": "task"}
_KINDS = {"backends": "backend", "models": "model", "teams": "team", "keys": "key", **_ROUTES}
_PROVIDERS = TRANSLATED | OWN


def check(root: Fields, *, whole: bool) -> list[Problem]:
    """What is wrong between the names. `whole` is false when a file could not be read, and then nothing is called
    unknown."""
    problems = [*_names(root), *_hashes(root), *_providers(root), *_twice(root)]
    if whole:
        problems += [*_pointers(root, "models", "backend", "backends"), *_pointers(root, "keys", "team", "teams")]
        problems += [*_chains(root), *_modes(root)]
    return problems


def _section(root: Fields, name: str) -> dict[str, Entry]:
    entry = root.entries.get(name)
    return dict(entry.node.entries) if entry and isinstance(entry.node, Fields) else {}


def _field(node: Node, name: str) -> Node | None:
    entry = node.entries.get(name) if isinstance(node, Fields) else None
    return entry.node if entry else None


def _names(root: Fields) -> Iterator[Problem]:
    for section, kind in _KINDS.items():
        in_headers = kind in ("backend", "model", "alias", "task")
        for name, entry in _section(root, section).items():
            if not name or not name.isprintable() or name != name.strip():
                yield entry.place.problem(
                    f"{section}: a name that is empty or has control characters; write a plain one"
                )
            elif in_headers and not _HEADER_NAME.fullmatch(name):
                yield entry.place.problem(
                    f"{section}.{name}: this name travels in response headers; write it in ASCII without spaces"
                )
            elif kind == "backend" and "/" in name:
                yield entry.place.problem(
                    f"{section}.{name}: a backend's name has no `/`, since people ask for backend/model; "
                    f"write {name.replace('/', '-')}"
                )
            elif kind in ("alias", "model") and (name == "auto" or name.startswith("task:")):
                yield entry.place.problem(
                    f"{section}.{name}: `auto` and `task:…` ask for a task, never for this {kind}; write another name"
                )


def _hashes(root: Fields) -> Iterator[Problem]:
    seen: dict[object, str] = {}
    for name, entry in _section(root, "keys").items():
        digest = _field(entry.node, "hash")
        if not isinstance(digest, Scalar) or not digest.value:
            continue
        first = seen.setdefault(digest.value, name)
        if first != name:
            yield digest.place.problem(
                f"keys.{name}.hash: the same hash as key `{first}`; write the hash of a key of its own"
            )


def _providers(root: Fields) -> Iterator[Problem]:
    for name, entry in _section(root, "backends").items():
        provider = _field(entry.node, "provider")
        if not isinstance(provider, Scalar) or not isinstance(provider.value, str) or provider.value in _PROVIDERS:
            continue
        where, reason = f"backends.{name}.provider", why_refused(provider.value)
        yield provider.place.problem(
            f"{where}: `{provider.text}` is not served: {reason}"
            if reason
            else f"{where}: unknown provider `{provider.text}`{near(provider.text, _PROVIDERS)}"
        )


def _pointers(root: Fields, section: str, field: str, target: str) -> Iterator[Problem]:
    known = _section(root, target)
    for name, entry in _section(root, section).items():
        pointer = _field(entry.node, field)
        if isinstance(pointer, Scalar) and isinstance(pointer.value, str) and pointer.value not in known:
            yield pointer.place.problem(_unknown(f"{section}.{name}.{field}", target, pointer.text, known))


def _unknown(where: str, section: str, name: str, known: Iterable[str]) -> str:
    return f"{where}: no {_KINDS[section]} is called `{name}`{near(name, known) or f'; declare it under `{section}:`'}"


def _chain_names(root: Fields) -> Iterator[tuple[str, list[Scalar]]]:
    for section in _ROUTES:
        for name, entry in _section(root, section).items():
            chain = entry.node if isinstance(entry.node, Items) else _field(entry.node, "chain")
            names: list[Node] = []
            for step in chain.items if isinstance(chain, Items) else ():
                several = _field(step, "any")
                names += several.items if isinstance(several, Items) else [step]
            yield (
                f"{section}.{name}",
                [item for item in names if isinstance(item, Scalar) and isinstance(item.value, str)],
            )


def _chains(root: Fields) -> Iterator[Problem]:
    models, aliases = _section(root, "models"), _section(root, "aliases")
    for where, names in _chain_names(root):
        for item in names:
            if item.value in models:
                continue
            if item.value in aliases:
                yield item.place.problem(
                    f"{where}: `{item.text}` is an alias, and a chain names models; write the models of its chain"
                )
            else:
                yield item.place.problem(_unknown(where, "models", item.text, models))


def _modes(root: Fields) -> Iterator[Problem]:
    """A chain serves one kind of request; a model of another kind in it would never be asked."""
    models = _section(root, "models")
    for where, names in _chain_names(root):
        told = [(item, _field(models[item.value].node, "mode")) for item in names if item.value in models]
        modes = [(item, mode.value) for item, mode in told if isinstance(mode, Scalar) and isinstance(mode.value, str)]
        for item, mode in modes[1:]:
            first, wanted = modes[0]
            if not fits(mode, wanted):
                yield item.place.problem(
                    f"{where}: `{item.text}` is a model for {mode} and `{first.text}` for {wanted}, and no request can "
                    "be answered by both; remove one, or write an alias for each"
                )


def _twice(root: Fields) -> Iterator[Problem]:
    for where, names in _chain_names(root):
        seen: dict[object, Place] = {}
        for item in names:
            if item.value in seen:
                yield item.place.problem(
                    f"{where}: `{item.text}` stands twice in the chain; remove one (`retry` tries it again)"
                )
            seen.setdefault(item.value, item.place)
