"""What leaves for a provider where litellm's words would lose, forbid or invent something."""

from typing import Any

import orjson
import pytest

from tests.upstream.scripted import Script, ScriptedWire, says
from tests.upstream.translators import AWS, TOOL, ask, body, opened, refusal

NAMED = {"type": "function", "function": {"name": "weather"}}
VERTEX = {"provider": "vertex_ai", "options": {"project": "p"}}


async def sent(request: bytes, **settings: Any) -> Any:
    """The body that leaves for a backend with these settings."""
    wire = wire_of()
    await ask(opened(wire, **settings), request, key=None if settings.get("api_keys") == () else "the-key")
    assert len(wire.sent) == 1
    return orjson.loads(wire.sent[0].body)


def wire_of() -> ScriptedWire:
    return says(Script(500))


@pytest.mark.parametrize("provider", ["anthropic", "gemini", "cohere", "deepseek", "mistral", "ollama", "vllm"])
async def test_a_developer_s_message_is_the_system_prompt(provider: str) -> None:
    """OpenAI's newer name of the role means the same, and nobody else knows it."""
    turns = ({"role": "developer", "content": "be brief"}, "hi")
    system = ({"role": "system", "content": "be brief"}, "hi")
    assert await sent(body("m", *turns), provider=provider) == await sent(body("m", *system), provider=provider)


async def test_azure_has_the_role_developer_itself() -> None:
    """It serves OpenAI's models."""
    found = await sent(body("gpt-4o", {"role": "developer", "content": "x"}, "hi"), provider="azure")
    assert found["messages"][0]["role"] == "developer"


@pytest.mark.parametrize("settings", [{"provider": "gemini"}, VERTEX], ids=["gemini", "vertex_ai"])
async def test_every_call_reaches_gemini_also_when_two_say_the_same(settings: dict[str, Any]) -> None:
    """There must be as many answers as calls."""
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "roll", "arguments": "{}"}} for n in range(3)]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "6"} for call in calls]
    made = {"role": "assistant", "content": None, "tool_calls": calls}
    contents = (await sent(body("gemini-2.5-pro", "roll", made, *results), **settings))["contents"]
    assert contents[1]["parts"] == [{"function_call": {"name": "roll", "args": {}}}] * 3
    assert len(contents[2]["parts"]) == 3


@pytest.mark.parametrize("provider", ["anthropic", "bedrock", "vertex_ai"])
@pytest.mark.parametrize(("limit", "budget"), [(500, None), (1500, 1499), (3000, 1024)])
async def test_claude_is_to_think_less_than_it_may_say(provider: str, limit: int, budget: int | None) -> None:
    """A budget holds what `max_tokens` says, so the thinking gives way; below 1024 tokens there is none."""
    settings: dict[str, Any] = {"provider": provider}
    if provider == "bedrock":
        settings |= {"options": AWS, "api_keys": ()}
    elif provider == "vertex_ai":
        settings |= VERTEX
    model = "anthropic.claude-sonnet-4-20250514-v1:0" if provider == "bedrock" else "claude-sonnet-4-5"
    effort = "low" if limit == 3000 else "high"
    found = await sent(body(model, "hi", max_tokens=limit, reasoning_effort=effort), **settings)
    thinking = (found.get("additionalModelRequestFields", {}) if provider == "bedrock" else found).get("thinking")
    assert (thinking or {}).get("budget_tokens") == budget
    assert limit in (found.get("max_tokens"), found.get("inferenceConfig", {}).get("maxTokens"))


@pytest.mark.parametrize("provider", ["deepseek", "lm_studio", "together_ai", "perplexity"])
async def test_a_limit_goes_by_the_name_that_the_provider_bounds_answers_by(provider: str) -> None:
    """A field that it passes over would leave the answer as long as it likes, and a budget holds for no more."""
    found = await sent(body("m", "hi", max_completion_tokens=7), provider=provider, base_url="http://provider.test")
    assert found["max_tokens"] == 7
    assert "max_completion_tokens" not in found
    both = body("m", "hi", max_completion_tokens=7, max_tokens=5)
    assert (await sent(both, provider=provider, base_url="http://provider.test"))["max_tokens"] == 5


async def test_mistral_gets_what_it_knows_and_litellm_does_not() -> None:
    """Among it the one tool to be called, which would be left out silently."""
    fields: dict[str, Any] = {"frequency_penalty": 0.5, "presence_penalty": 0.25, "n": 2, "metadata": {"a": "b"}}
    found = await sent(body("m", "hi", tools=[TOOL], tool_choice=NAMED, **fields), provider="mistral")
    assert {name: found[name] for name in (*fields, "tool_choice")} == {**fields, "tool_choice": NAMED}


async def test_ollama_is_given_no_tools_where_none_is_to_be_called() -> None:
    """It has no `tool_choice`: another one is refused by its name, or dropped if the policies say so."""
    settings: dict[str, Any] = {"provider": "ollama", "api_keys": ()}
    assert "tools" not in await sent(body("m", "hi", tools=[TOOL], tool_choice="none"), **settings)
    assert "tools" in await sent(body("m", "hi", tools=[TOOL], tool_choice="auto"), **settings)
    for choice in ("required", NAMED):
        status, error = await refusal(
            opened(wire_of(), **settings), body("m", "hi", tools=[TOOL], tool_choice=choice), key=None
        )
        assert (status, error["param"]) == (400, "tool_choice")
    dropped = await sent(body("m", "hi", tools=[TOOL], tool_choice="required"), **settings, drop_params=True)
    assert "tools" in dropped


async def test_penalties_mean_to_ollama_what_they_mean_to_openai() -> None:
    """Its own `repeat_penalty` is another measure, in which a half rewards repetition."""
    found = await sent(body("m", "hi", frequency_penalty=0.5, presence_penalty=0.25), provider="ollama", api_keys=())
    assert found["options"] == {"frequency_penalty": 0.5, "presence_penalty": 0.25}


async def test_cohere_is_not_sent_what_its_first_api_had_or_only_openai_has() -> None:
    """`n` is refused by its name, `strict` of a tool left out, and one tool is chosen only where it may be dropped."""
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]
    found = await sent(body("m", "hi", tools=[strict]), provider="cohere")
    assert found["tools"] == [TOOL]
    for odd in ({}, {"type": "function"}, {"type": "function", "function": "f"}):  # for Cohere to refuse
        assert (await sent(body("m", "hi", tools=[odd]), provider="cohere"))["tools"] == [odd]
    for field in ({"n": 2}, {"tools": [TOOL], "tool_choice": NAMED}):
        status, error = await refusal(opened(wire_of(), provider="cohere"), body("m", "hi", **field))
        assert (status, error["param"]) == (400, [*field][-1])
        assert f"`{[*field][-1]}`" in error["message"]
        assert [*field][-1] not in await sent(body("m", "hi", **field), provider="cohere", drop_params=True)


@pytest.mark.parametrize("provider", ["anthropic", "gemini"])
async def test_what_cannot_be_translated_is_refused_without_repeating_it(provider: str) -> None:
    """litellm tells of an unknown role by printing the messages."""
    wire = wire_of()
    request = body("m", {"role": "wizard", "content": "a secret"}, "hi")
    status, error = await refusal(opened(wire, provider=provider), request)
    assert (status, wire.sent) == (400, [])
    assert "secret" not in error["message"]
    assert "check that its messages" in error["message"]


async def test_a_value_that_the_provider_lacks_is_named_in_a_whole_sentence() -> None:
    """What litellm advises about its own settings is left out."""
    request = body("anthropic.claude-3-5-sonnet-20241022-v2:0", "hi", tools=[TOOL], tool_choice="none")
    wire = opened(wire_of(), provider="bedrock", options=AWS, api_keys=())
    status, error = await refusal(wire, request, key=None)
    assert status == 400
    assert error["message"].endswith("for bedrock: Bedrock doesn't support tool_choice=none.")
