"""Settings from outside: what may be set, and what is said of a variable that may not."""

import pytest

from gateway.settings import DEFAULT_STORE, VARIABLES, Settings, SettingsError, check_environment


def test_every_variable_of_ours_is_taken() -> None:
    """And everybody else's is left alone."""
    check_environment({**dict.fromkeys(VARIABLES, "x"), "OTEL_SERVICE_NAME": "x", "PATH": "/", "gateway_x": "y"})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("GATEWAY_POLICY", "did you mean GATEWAY_POLICIES?"),
        ("GATEWAY_PROT", "did you mean GATEWAY_PORT?"),
        ("GATEWAY_WORKER", "did you mean GATEWAY_WORKERS?"),
        ("GATEWAY_ADMINKEY", "did you mean GATEWAY_ADMIN_KEY?"),
        ("GATEWAY_ZZZZZZZZZZZ", "known are GATEWAY_POLICIES, GATEWAY_STORE"),
        ("GATEWAY_FOO", "known are GATEWAY_POLICIES, GATEWAY_STORE"),
        ("GATEWAY_AUTH", "known are GATEWAY_POLICIES, GATEWAY_STORE"),
    ],
)
def test_an_unknown_variable_is_an_error(name: str, said: str) -> None:
    """With the name that was meant, or all there are."""
    with pytest.raises(SettingsError) as caught:
        check_environment({name: "x"})
    assert f"{name} is not a setting of the gateway; " in str(caught.value)
    assert said in str(caught.value)


def test_every_unknown_variable_is_told_at_once() -> None:
    """In the order of their names, and never their values."""
    with pytest.raises(SettingsError) as caught:
        check_environment({"GATEWAY_B": "secret", "GATEWAY_A": "secret"})
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["GATEWAY_A", "GATEWAY_B"]
    assert "secret" not in str(caught.value)


def test_the_defaults_are_those_of_the_contract() -> None:
    """Loopback, port 8080, one process, a file in the working directory, no admin API."""
    found = Settings(None)
    assert (found.host, found.port, found.workers, found.store) == ("127.0.0.1", 8080, 1, "sqlite:///gateway.db")
    assert found.store == DEFAULT_STORE
    assert found.admin_key is None
    assert not found.demo
