"""What is imported before serving, and what in a request."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, sys
from tests.providers.server import Fake
from tests.upstream.scripted import Script, says
from tests.upstream.translators import PICTURE, SCHEMA, SETTINGS, TOOL, ask, body, opened

PARTS = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
CALLS = [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]

async def main():
    wires = [opened(says(Script(500)), **settings) for settings in SETTINGS.values()]
    before = set(sys.modules)
    for wire in wires:
        for turns in (["hi"], [{"role": "user", "content": PARTS}],
                      ["hi", {"role": "assistant", "tool_calls": CALLS},
                       {"role": "tool", "tool_call_id": "c", "content": "x"}]):
            for fields in ({}, {"stream": True, "tools": [TOOL]}, {"response_format": SCHEMA}):
                await ask(wire, body("claude-sonnet-4-5", *turns, **fields))
    print("imported:", *sorted(set(sys.modules) - before))

asyncio.run(main())
"""


def test_a_request_imports_nothing() -> None:
    """litellm imports a provider's module when it is first asked for it, and that is before serving."""
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == "imported:"
