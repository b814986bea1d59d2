"""Where responses are kept: remembered for their owner, and never more than so many."""

import pytest

from gateway.server.responses import Home, Homes
from gateway.upstream.dispatch import Pin

PIN = Pin("openai", "openai#1")


def test_a_home_is_found_by_its_owner_only() -> None:
    """Nobody else may go there, and what is not known is nobody's."""
    homes = Homes()
    homes.remember("resp_1", Home(PIN, "alice"))
    assert homes.find("resp_1", "alice") == PIN
    assert homes.find("resp_2", "alice") is None
    with pytest.raises(KeyError):
        homes.find("resp_1", "bob")


def test_the_oldest_is_forgotten() -> None:
    """What was made again counts as new."""
    homes = Homes(kept=2)
    for response_id in ("resp_1", "resp_2", "resp_1", "resp_3"):
        homes.remember(response_id, Home(PIN, "alice"))
    assert homes.find("resp_1", "alice") == PIN
    assert homes.find("resp_2", "alice") is None
