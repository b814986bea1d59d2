"""A prompt that fits its limit by tokens is not refused for its bytes."""

from pathlib import Path

from tests.faults import FaultUpstream
from tests.support import ask, key_policy, serve

PROSE = "The ship came into the harbour in the evening, and nobody on the quay knew her name. " * 200


def test_near_a_limit_the_prompt_is_counted(tmp_path: Path) -> None:
    """17,000 bytes are some 3,800 tokens: they fit a limit of 6,000 at a model whose tokenizer is known, once."""
    with FaultUpstream.in_thread() as upstream:
        policies = {
            "backends": {"there": {"base_url": upstream.url}},
            "models": {
                "known": {"backend": "there", "model": "gpt-4o-mini", "price": "free", "max_output": 1000},
                "unknown": {"backend": "there", "model": "mystery", "price": "free", "max_output": 1000},
            },
            "keys": {"alice": key_policy("sk-alice", limits=[{"tokens": 6000, "per": "day"}])},
        }
        with serve(tmp_path, policies) as gateway:
            refused = gateway.chat(ask("unknown", PROSE, max_tokens=500), key="sk-alice")
            assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
            answered = gateway.chat(ask("known", PROSE, max_tokens=500), key="sk-alice")
            assert answered.status == 200, answered.body
            assert "x-gateway-clamped" not in answered.headers
