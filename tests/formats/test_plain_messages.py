"""Chat messages in words that others than OpenAI know too."""

from typing import Any

import orjson

from gateway.formats.plain_messages import plain, told_apart, unmarked


def call(arguments: str, name: str = "roll") -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_developer_is_the_system_to_who_does_not_know_the_role() -> None:
    """And stays one to who does; all else of the message is kept."""
    said = {"role": "developer", "content": "be brief", "name": "d"}
    assert plain([said, "odd"], developer=False) == [{**said, "role": "system"}, "odd"]
    assert plain([said], developer=True) == [said]


def test_empty_arguments_are_an_empty_object() -> None:
    """Some servers stream a call without arguments as no text at all, and others cannot parse that."""
    asked = [{"role": "assistant", "content": None, "tool_calls": [call(""), call('{"a":1}'), "odd"]}]
    found = plain(asked, developer=False)[0]["tool_calls"]
    assert [found[0], found[1], found[2]] == [call("{}"), call('{"a":1}'), "odd"]
    assert asked[0]["tool_calls"] == [call(""), call('{"a":1}'), "odd"]


def test_calls_that_say_the_same_are_told_apart_and_mended_again() -> None:
    """Whatever the order and spaces of their arguments; others are left as they are, readable or not."""
    calls = [
        call('{"a": 1, "b": 2}'),
        call('{"b":2,"a":1}'),
        call("{}"),
        call("{}", "now"),
        call("{broken"),
        call("[]"),
    ]
    found = told_apart([{"role": "assistant", "tool_calls": calls}, "odd"])
    told = found[0]["tool_calls"]
    assert [one == other for one, other in zip(told, calls, strict=True)] == [True, False, True, True, True, True]
    arguments = orjson.loads(told[1]["function"]["arguments"])
    assert arguments.items() > {"a": 1, "b": 2}.items()
    parts: list[dict[str, Any]] = [{"function_call": {"name": "roll", "args": arguments}}, {"text": "x"}]
    unmarked(parts)
    assert parts == [{"function_call": {"name": "roll", "args": {"a": 1, "b": 2}}}, {"text": "x"}]
