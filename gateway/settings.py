"""What is set from outside the policies: flags and `GATEWAY_*` variables of the same name, as one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

VARIABLES: Mapping[str, str] = {
    "GATEWAY_POLICIES": "directory of the policies",
    "GATEWAY_STORE": "where budgets and usage are kept: sqlite:///FILE or redis://…",
    "GATEWAY_HOST": "address to listen on",
    "GATEWAY_PORT": "port to listen on",
    "GATEWAY_WORKERS": "number of processes",
    "GATEWAY_ADMIN_KEY": "key of /admin/v1; without it that is off",
    "GATEWAY_DEMO": "serve simulated backends",
}
_PREFIX = "GATEWAY_"
DEFAULT_STORE = "sqlite:///gateway.db"


class SettingsError(ValueError):
    """A setting that cannot be; the message says what to write instead."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How this process runs. `policies` is None for the demo's own."""

    policies: Path | None
    store: str = DEFAULT_STORE
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    admin_key: str | None = None
    demo: bool = False


def check_environment(environ: Mapping[str, str]) -> None:
    """Raise SettingsError for a `GATEWAY_*` variable that is not one of VARIABLES."""
    problems = []
    settings = [name.removeprefix(_PREFIX) for name in VARIABLES]  # what all have in common brings none nearer
    for name in sorted(environ):
        if name.startswith(_PREFIX) and name not in VARIABLES:
            near = get_close_matches(name.removeprefix(_PREFIX), settings, n=1)
            advice = f"did you mean {_PREFIX}{near[0]}?" if near else f"known are {', '.join(VARIABLES)}."
            problems.append(f"{name} is not a setting of the gateway; {advice}")
    if problems:
        raise SettingsError("\n".join(problems))
