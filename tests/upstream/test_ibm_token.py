"""Tokens for IBM Cloud's api keys: asked for once, kept, shared and replaced."""

import asyncio
from urllib.parse import parse_qs

import orjson
import pytest

from gateway.upstream.ibm_token import IbmTokens, KeyRefused
from gateway.upstream.wire import ConnectError
from tests.upstream.rare import completion
from tests.upstream.scripted import Script, ScriptedWire, Sent, says
from tests.upstream.translators import all_of, answer, ask, body, opened, refusal

TOKEN = orjson.dumps({"access_token": "eyJ.token", "expires_in": 3600, "token_type": "Bearer"})
TIMES = {"connect_timeout": 1.0, "timeout": 1.0}
WATSONX = {"provider": "watsonx", "options": {"project_id": "p"}}


def ibm(*, status: int = 200, chat: int = 200) -> ScriptedWire:
    """IBM's two hosts."""

    def told(sent: Sent) -> Script:
        if sent.path == "/identity/token":
            return Script(status, [TOKEN if status == 200 else b'{"errorMessage": "Provided API key is bad"}'])
        return Script(chat, [orjson.dumps(completion())])

    return ScriptedWire(told)


async def test_a_key_is_exchanged_once_and_the_token_kept() -> None:
    """With the form that IBM's reference has, at its own host."""
    wire = ibm()
    tokens = IbmTokens(wire.open)
    assert await tokens.get("key one", **TIMES) == await tokens.get("key one", **TIMES) == "eyJ.token"
    (sent,) = wire.sent
    assert parse_qs(sent.body.decode()) == {
        "grant_type": ["urn:ibm:params:oauth:grant-type:apikey"],
        "apikey": ["key one"],
    }
    assert wire.origins[0].host == "iam.cloud.ibm.com"
    assert sent.header("content-type") == "application/x-www-form-urlencoded"
    await tokens.get("another", **TIMES)
    assert len(wire.sent) == 2
    await tokens.aclose()
    assert wire.closed


async def test_those_who_come_together_ask_once() -> None:
    """They wait for one answer."""
    wire = ibm()
    tokens = IbmTokens(wire.open)
    assert set(await asyncio.gather(*(tokens.get("k", **TIMES) for _ in range(5)))) == {"eyJ.token"}
    assert len(wire.sent) == 1


async def test_a_token_near_its_end_is_replaced() -> None:
    """Five minutes before."""
    wire = says(Script(200, [b'{"access_token": "t", "expires_in": 299}']))
    tokens = IbmTokens(wire.open)
    await tokens.get("k", **TIMES)
    await tokens.get("k", **TIMES)
    assert len(wire.sent) == 2


@pytest.mark.parametrize("said", [b"[]", b"not JSON", b'{"access_token": 1}', '{"access_token": "ü"}'.encode()])
async def test_what_is_no_token_is_none(said: bytes) -> None:
    """Nothing of it is told, nor of the key."""
    with pytest.raises(KeyRefused) as caught:
        await IbmTokens(says(Script(200, [said])).open).get("secret", **TIMES)
    assert "secret" not in str(caught.value)


async def test_watsonx_is_sent_the_token_and_never_the_key() -> None:
    """And another once it was refused."""
    wire = ibm()
    backend = opened(wire, **WATSONX)
    await answer(backend, body("m", "hi"))
    await answer(backend, body("m", "hi"))
    token, *chats = wire.sent
    assert token.path == "/identity/token"
    assert [sent.header("authorization") for sent in chats] == ["Bearer eyJ.token"] * 2
    assert "the-key" not in repr(chats)
    wire = ibm(chat=401)
    backend = opened(wire, **WATSONX)
    for _ in range(2):
        assert (await refusal(backend, body("m", "hi")))[0] == 401
    assert [sent.path for sent in wire.sent] == ["/identity/token", "/ml/v1/text/chat"] * 2
    await backend.aclose()


async def test_a_key_that_gets_no_token_is_a_bad_key() -> None:
    """So that it rests; an endpoint that cannot be reached is another matter."""
    status, error = await refusal(opened(ibm(status=400), **WATSONX), body("m", "hi"))
    assert (status, error["type"]) == (401, "authentication_error")
    assert "IBM Cloud gives the api key no token (status 400)" in error["message"]
    wire = ScriptedWire(lambda _: ConnectError("no way"))
    with pytest.raises(ConnectError):
        await all_of(await ask(opened(wire, **WATSONX), body("m", "hi")))
