"""The order of the house: imports run one way only, each foreign library has its home, pure modules stay pure."""

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 600

# A module imports only what stands before it. `package.*` is the place of a package's other modules, which may import
# each other as long as they form no ring. The order is errors, pure modules, telemetry, stores, upstream, proxy, server,
# app, cli.
ORDER = (
    "gateway",
    "gateway.errors",
    "gateway.values",
    # pure
    "gateway.policy",
    "gateway.policy.schema",
    "gateway.policy.providers",
    "gateway.formats",
    "gateway.formats.sse",
    "gateway.formats.splice",
    "gateway.formats.tokens",
    "gateway.formats.usage",
    "gateway.formats.continuation",
    "gateway.formats.request",
    "gateway.formats.chat_stream",
    "gateway.formats.chat",
    "gateway.formats.*",
    "gateway.identity",
    "gateway.identity.principal",
    "gateway.identity.keyring",
    "gateway.identity.*",
    "gateway.budget",
    "gateway.budget.money",
    "gateway.budget.meter",
    "gateway.budget.refusal",
    "gateway.policy.catalog",
    "gateway.policy.router",
    "gateway.upstream",
    "gateway.upstream.breaker",
    "gateway.upstream.retry",
    "gateway.upstream.queue",
    # the policies are read
    "gateway.policy.positions",
    "gateway.policy.variables",
    "gateway.policy.messages",
    "gateway.policy.references",
    "gateway.policy.loader",
    "gateway.policy.*",
    # telemetry
    "gateway.tls",
    "gateway.telemetry",
    "gateway.telemetry.names",
    "gateway.telemetry.records",
    "gateway.telemetry.*",
    # stores
    "gateway.budget.prices",
    "gateway.budget.store",
    "gateway.budget.grant",
    "gateway.budget.hold",
    "gateway.budget.escrow",
    "gateway.budget.sqlite",
    "gateway.budget.redis",
    "gateway.budget.*",
    # upstream
    "gateway.outbox",
    "gateway.upstream.wire",
    "gateway.upstream.slots",
    "gateway.upstream.connection",
    "gateway.upstream.over_httpx",
    "gateway.upstream.direct",
    "gateway.upstream.instances",
    "gateway.upstream.simulated",
    "gateway.upstream.simulator",
    "gateway.upstream.backend",
    "gateway.upstream.openai",
    "gateway.upstream.*",
    "gateway.upstream.dispatch",
    # one request
    "gateway.admission",
    "gateway.runtime",
    "gateway.trip",
    "gateway.exchange",
    "gateway.proxy",
    "gateway.counting",
    # downstream
    "gateway.server",
    "gateway.server.downstream",
    "gateway.server.errors",
    "gateway.server.connection",
    "gateway.server.auth",
    "gateway.server.relay",
    "gateway.server.endpoints",
    "gateway.server.pages",
    "gateway.server.*",
    # the whole
    "gateway.settings",
    "gateway.app",
    "gateway.cli",
    "gateway.cli.*",
    "gateway.__main__",
)
# `gateway.cli` opens each command when it is asked for, by name: it imports none of them itself.

HOMES = {
    "click": ("gateway.cli",),
    "cryptography": ("gateway.upstream.google_token",),
    "grpc": ("gateway.telemetry",),
    "httptools": ("gateway.upstream.connection", "gateway.server.downstream", "gateway.server.connection"),
    "httpcore": ("gateway.upstream.over_httpx",),
    "httpx": ("gateway.upstream.over_httpx",),
    # By name, so that mypy does not read its two thousand files; elsewhere it is data.
    "litellm": ("gateway.upstream.litellm_library",),
    "opentelemetry": ("gateway.telemetry",),
    "orjson": ("gateway",),
    "prometheus_client": ("gateway.telemetry",),
    "pydantic": (
        "gateway.policy.schema",
        "gateway.policy.loader",
        "gateway.policy.messages",
        "gateway.settings",
    ),
    "redis": ("gateway.budget.redis",),
    "rich": ("gateway.cli",),
    "starlette": ("gateway.server", "gateway.app"),
    "tiktoken": ("gateway.budget.tokenizer",),
    "uvicorn": ("gateway.server", "gateway.app"),
    "uvloop": ("gateway.server.process",),
    "yaml": ("gateway.policy.positions",),
}

PURE = (
    "gateway.errors",
    "gateway.values",
    "gateway.formats.*",
    "gateway.identity.*",
    "gateway.policy.schema",
    "gateway.policy.providers",
    "gateway.policy.catalog",
    "gateway.policy.router",
    "gateway.budget.money",
    "gateway.budget.meter",
    "gateway.upstream.breaker",
    "gateway.upstream.retry",
    "gateway.upstream.queue",
    "gateway.telemetry.names",
)
IMPURE = frozenset(
    ("asyncio", "time", "random", "os", "logging", "socket", "threading", "secrets", "subprocess", "selectors", "ssl")
)
KINDS = frozenset(("utils", "util", "helpers", "managers", "services", "core", "common", "base", "misc", "lib", "v2"))
MUTABLE = frozenset(("list", "dict", "set", "bytearray", "deque", "defaultdict", "OrderedDict", "Counter"))
MUTATORS = frozenset(
    ("append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "clear", "remove", "discard")
)


@cache
def sources() -> dict[str, Path]:
    """Every module of the gateway, and its file."""
    found = {}
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(sources()[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> frozenset[str]:
    """Everything that a module imports anywhere in it: modules by their full name."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports by dots; write the full name"
            assert node.module is not None
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            inner = [name for name in whole if name in sources()]
            found |= set(inner)
            if len(inner) < len(whole):
                found.add(node.module)
    return frozenset(found)


def own(module: str) -> frozenset[str]:
    """The gateway's own modules that a module imports."""
    return frozenset(name for name in imports(module) if name in sources())


def rank(module: str) -> int:
    """Where a module stands in ORDER; -1 when it has no place."""
    if module in ORDER:
        return ORDER.index(module)
    package = module.rpartition(".")[0] + ".*"
    return ORDER.index(package) if package in ORDER else -1


def is_pure(module: str) -> bool:
    return module in PURE or module.rpartition(".")[0] + ".*" in PURE


def within(module: str, homes: tuple[str, ...]) -> bool:
    return any(module == home or module.startswith(home + ".") for home in homes)


def misplaced() -> Iterator[str]:
    for module in sources():
        if rank(module) < 0:
            yield f"{module} has no place; write it into ORDER after everything that it imports"
            continue
        for name in sorted(own(module)):
            same = rank(name) == rank(module) and ORDER[rank(name)].endswith(".*")
            if rank(name) >= rank(module) and not same:
                yield f"{module} imports {name}, which stands after it"


def a_ring() -> list[str]:
    """The modules of a ring of imports, if there is one."""
    left = {module: set(own(module)) for module in sources()}
    while free := [module for module, needed in left.items() if not needed & left.keys() - {module}]:
        for module in free:
            del left[module]
    return sorted(left)


def changes_of(module: str) -> Iterator[str]:
    """Where a module keeps state of its own: what it makes mutable, and where it changes it."""
    top = tree(module)
    names: set[str] = set()
    for node in top.body:
        for target in targets_of(node):
            if not isinstance(target, ast.Name):
                yield f"{module}:{node.lineno} assigns to {ast.unparse(target)} while it is imported"
                continue
            value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            if target.id == "__all__" or value is None or not is_mutable(value):
                continue
            names.add(target.id)
            if target.id != target.id.upper():
                yield f"{module}:{node.lineno} keeps a mutable {target.id}; make it a constant that nothing changes"
    for inner in ast.walk(top):
        if isinstance(inner, ast.Global):
            yield f"{module}:{inner.lineno} says global {', '.join(inner.names)}"
        changed = changed_name(inner)
        if changed in names:
            yield f"{module}:{getattr(inner, 'lineno', 0)} changes the constant {changed}"


def targets_of(node: ast.stmt) -> list[ast.expr]:
    """What a statement assigns to, one by one."""
    if isinstance(node, (ast.AnnAssign, ast.AugAssign)):
        return [node.target]
    if not isinstance(node, ast.Assign):
        return []
    return [each for target in node.targets for each in (target.elts if isinstance(target, ast.Tuple) else [target])]


def is_mutable(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        called = value.func
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
        return name in MUTABLE
    return isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp))


def changed_name(node: ast.AST) -> str:
    """The plain name that a statement or call changes in place."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        owner: ast.expr = node.func.value
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
        owner = node.value
    else:
        return ""
    return owner.id if isinstance(owner, ast.Name) else ""


def test_a_module_imports_only_what_stands_before_it() -> None:
    """The order of the house is one list, and every import points back in it."""
    assert list(misplaced()) == []


def test_the_order_names_only_what_exists() -> None:
    """A module that is gone leaves the list, so that the list stays the map."""
    named = [name for name in ORDER if not name.endswith(".*")]
    assert [name for name in named if name not in sources()] == []
    assert len(set(ORDER)) == len(ORDER)


def test_imports_form_no_ring() -> None:
    """Not even between two modules of one package."""
    assert a_ring() == []


def test_each_library_has_its_home() -> None:
    """A foreign library is imported only where it lives; one without a home is not imported at all."""
    strays = [
        f"{module} imports {name}, whose home is {', '.join(HOMES.get(name, ())) or 'nowhere'}"
        for module in sources()
        for name in sorted({name.partition(".")[0] for name in imports(module)} - {"gateway"})
        if name not in sys.stdlib_module_names and not within(module, HOMES.get(name, ()))
    ]
    assert strays == []


def test_pure_modules_know_no_clock_no_chance_and_no_world() -> None:
    """`now` and randomness come as arguments, and nothing is waited for, read, or logged."""
    impure = [
        f"{module} imports {name}"
        for module in sources()
        if is_pure(module)
        for name in sorted(imports(module))
        if name.partition(".")[0] in IMPURE
    ]
    assert impure == []


def test_pure_modules_stand_on_pure_modules() -> None:
    """What a pure module imports of the gateway is pure as well."""
    packages = {module for module, path in sources().items() if path.name == "__init__.py"}
    mixed = [
        f"{module} imports {name}"
        for module in sources()
        if is_pure(module)
        for name in sorted(own(module) - packages)
        if not is_pure(name)
    ]
    assert mixed == []


@pytest.mark.parametrize("package", ["gateway", "tests"])
def test_no_file_is_longer_than_a_reader_can_hold(package: str) -> None:
    """At most six hundred lines a file."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / package).rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_folders_and_files_are_named_by_duty() -> None:
    """No folder and no module is named by its kind."""
    named = [
        str(path.relative_to(ROOT))
        for package in ("gateway", "tests")
        for path in (ROOT / package).rglob("*")
        if path.stem.lower() in KINDS or path.stem.rpartition("_")[2] in {"v2", "v3", "utils", "helpers"}
    ]
    assert named == []


@pytest.mark.parametrize("package", ["gateway", "tests"])
def test_every_module_opens_with_a_sentence(package: str) -> None:
    """Read in order, the opening sentences are the map; only an empty `__init__.py` has nothing to say."""
    silent = []
    for path in sorted((ROOT / package).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        said = ast.get_docstring(ast.parse(text))
        if text and not (said and said.split("\n\n")[0].rstrip().endswith((".", "!", ":", "?"))):
            silent.append(str(path.relative_to(ROOT)))
    assert silent == []


def test_modules_keep_no_state() -> None:
    """What stands at the top of a module is a constant that nothing changes."""
    assert [change for module in sources() for change in changes_of(module)] == []


def test_an_import_inside_a_function_is_of_something_heavy_or_of_the_composition() -> None:
    """Only the CLI, the composition root and a library's own home put an import off."""
    late = [
        f"{module}:{inner.lineno}"
        for module in sources()
        for node in ast.walk(tree(module))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(node)
        if isinstance(inner, (ast.Import, ast.ImportFrom)) and not may_put_off(module, inner)
    ]
    assert late == []


def may_put_off(module: str, node: ast.Import | ast.ImportFrom) -> bool:
    if within(module, ("gateway.cli", "gateway.app")):
        return True
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    heavy = ("redis", "grpc", "uvloop", "opentelemetry", "httpx", "cryptography", "tiktoken")
    ours = ("gateway.budget.redis", "gateway.upstream.over_httpx", "gateway.telemetry")
    return all(within(name, (*heavy, *ours)) for name in names)


HEAVY = ("litellm", "tiktoken", "redis", "grpc", "httpx", "opentelemetry.sdk", "opentelemetry.exporter", "rich")
POLICIES = """
server: {auth: none}
backends: {here: {base_url: http://127.0.0.1:9/v1, local: true}}
models: {m: {backend: here, model: m}}
"""


def test_serving_compatible_backends_imports_nothing_heavy(tmp_path: Path) -> None:
    """A gateway without Redis, OTLP or a translated provider imports none of their libraries."""
    (tmp_path / "all.yaml").write_text(POLICIES)
    store = f"sqlite:///{tmp_path}/gateway.db"
    command = (
        "-X",
        "importtime",
        "-m",
        "gateway",
        "serve",
        "--policies",
        str(tmp_path),
        "--port",
        "0",
        "--store",
        store,
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "OTEL_"))}
    log = tmp_path / "imports"
    with (
        log.open("wb") as told,
        subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=told, text=True
        ) as serving,
    ):
        assert serving.stdout is not None
        greeting = serving.stdout.readline()
        serving.send_signal(signal.SIGTERM)
        serving.communicate(timeout=60)
    assert greeting.startswith("gateway serves"), log.read_text()[-2000:]
    assert serving.returncode == 0
    imported = {
        line.rpartition("|")[2].strip() for line in log.read_text().splitlines() if line.startswith("import time:")
    }
    assert "gateway.upstream.direct" in imported
    assert [name for name in HEAVY if name in imported] == []


def test_the_rules_see_what_they_forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule fails for a module that breaks it."""
    code = """
from gateway.proxy import Proxy
kept = {}
KNOWN = {}
def remember(name):
    global counter
    KNOWN[name] = 1
    KNOWN.update(a=1)
"""
    broken = ast.parse(code)
    monkeypatch.setattr(f"{__name__}.tree", lambda _: broken)
    assert len(list(changes_of("gateway.errors"))) == 4
    imports.cache_clear()
    assert "gateway.errors imports gateway.proxy, which stands after it" in list(misplaced())
    imports.cache_clear()
