"""Providers whose answers litellm reads: Oracle's signature and streams, and what each is asked."""

import base64
import socket
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from gateway.upstream.wire import ProtocolError
from tests.formats import told
from tests.upstream.rare import OCI, OCI_KEY, PEM, SEEN, SPECIAL
from tests.upstream.scripted import Script, ScriptedWire, Sent, says
from tests.upstream.translators import PICTURE, TOOL, all_of, answer, ask, body, opened, refusal

LLAMA = "meta.llama-3.3-70b-instruct"


@pytest.fixture(autouse=True)
def _nothing_but_our_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """No translation opens a socket or looks a name up."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something wanted the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


async def sent_to(provider: str, request: bytes) -> Sent:
    """What leaves for a provider that answers as documented."""
    rare = SPECIAL[provider]
    inner = says(Script(200, [orjson.dumps(rare.answer)]))
    await answer(opened(inner, provider=provider, **rare.settings), request)
    return inner.sent[0]


async def streamed(*docs: Any, end: bytes = b"\n", model: str = LLAMA, **fields: Any) -> tuple[told.Told, Sent]:
    """A stream of Oracle's, read."""
    inner: ScriptedWire = says(Script(200, [b"data: " + orjson.dumps(doc) + end for doc in docs]))
    wire = opened(inner, provider="oci", options=OCI, api_keys=())
    out = await all_of(await ask(wire, body(model, "hi", stream=True, **fields), key=None))
    return told.read(out), inner.sent[0]


async def test_oracle_can_verify_the_signature() -> None:
    """Of the body, the date and the host, by the user's key."""
    sent = await sent_to("oci", body(LLAMA, "hi", max_tokens=9))
    given = sent.header("authorization") or ""
    fields = dict(part.split("=", 1) for part in given.removeprefix("Signature ").split(","))
    assert fields["keyId"] == f'"{OCI["oci_tenancy"]}/{OCI["oci_user"]}/{OCI["oci_fingerprint"]}"'
    values = {
        "(request-target)": f"post {sent.path}",
        "host": "provider.test",
        "content-length": str(len(sent.body)),
        **{name: sent.header(name) for name in ("date", "content-type", "x-content-sha256")},
    }
    names = fields["headers"].strip('"').split(" ")
    assert set(names) == values.keys()
    text = "\n".join(f"{name}: {values[name]}" for name in names)
    signature = base64.b64decode(given.rpartition('signature="')[2].rstrip('"'))
    OCI_KEY.public_key().verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())
    said = orjson.loads(sent.body)
    assert (said["compartmentId"], said["servingMode"]["modelId"]) == (OCI["oci_compartment_id"], LLAMA)
    assert said["chatRequest"]["maxTokens"] == 9
    assert "PRIVATE KEY" not in sent.body.decode() + repr(sent.headers)


async def test_oracle_s_streams_are_read_line_by_line() -> None:
    """Its events need no blank line; usage comes last, when it was asked for."""
    usage = {"promptTokens": 3, "completionTokens": 4, "totalTokens": 7}
    found, sent = await streamed(
        {"index": 0, "message": {"role": "ASSISTANT", "content": [{"type": "TEXT", "text": "hel"}]}},
        {"index": 0, "message": {"role": "ASSISTANT", "content": [{"type": "TEXT", "text": "lo"}]}},
        {"finishReason": "stop"},
        {"usage": usage},
        stream_options={"include_usage": True},
    )
    assert (found.text, found.finish, found.done) == ("hello", ["stop"], True)
    assert found.usage is not None
    assert (found.usage["prompt_tokens"], found.usage["completion_tokens"]) == (3, 4)
    said = orjson.loads(sent.body)["chatRequest"]
    assert (said["isStream"], said["streamOptions"]) == (True, {"isIncludeUsage": True})


async def test_oracle_s_tool_calls_are_put_together() -> None:
    """Their arguments come in pieces."""
    start = {"id": "call_1", "type": "FUNCTION", "name": "weather", "arguments": ""}
    more = [{"type": "FUNCTION", "arguments": piece} for piece in ('{"city":', '"Bern"}')]
    docs = [{"index": 0, "message": {"role": "ASSISTANT", "toolCalls": [call]}} for call in (start, *more)]
    found, _ = await streamed(*docs, {"finishReason": "tool_calls"}, tools=[TOOL])
    assert list(found.calls.values()) == [["weather", '{"city":"Bern"}']]
    assert (found.ids, found.finish) == ({0: "call_1"}, ["tool_calls"])


async def test_cohere_s_last_event_at_oracle_tells_nothing_twice() -> None:
    """It has the whole text once more."""
    found, _ = await streamed(
        {"apiFormat": "COHERE", "text": "hel"},
        {"apiFormat": "COHERE", "text": "lo"},
        {
            "apiFormat": "COHERE",
            "text": "hello",
            "chatHistory": [{"role": "CHATBOT", "message": "hello"}],
            "finishReason": "COMPLETE",
        },
        end=b"\n\n",
        model="cohere.command-r-plus",
    )
    assert (found.text, found.finish, found.done) == ("hello", ["stop"], True)


async def test_an_error_inside_oracle_s_stream_is_told_and_a_strange_event_counted() -> None:
    """No stream that broke looks whole."""
    piece = {"index": 0, "message": {"role": "ASSISTANT", "content": [{"type": "TEXT", "text": "hel"}]}}
    found, _ = await streamed(piece, {"message": {"content": [{"type": "NOISE"}]}}, {"code": "500", "message": "down"})
    assert found.error is not None
    assert (found.error["message"], found.done) == ("down", False)
    assert found.malformed == 1


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("length", "length"), ("MAX_TOKENS", "length"), ("TOOL_CALL", "tool_calls"), ("ERROR_TOXIC", "content_filter")],
)
async def test_oracle_s_reasons_to_end_are_kept_apart(reason: str, finish: str) -> None:
    """Whole and streamed; an answer that was cut does not look whole."""
    rare = SPECIAL["oci"]
    chat = rare.answer["chatResponse"]
    doc = {**rare.answer, "chatResponse": {**chat, "choices": [{**chat["choices"][0], "finishReason": reason}]}}
    inner = says(Script(200, [orjson.dumps(doc)]))
    found = await answer(opened(inner, provider="oci", **rare.settings), body(LLAMA, "hi"), key=None)
    assert found["choices"][0]["finish_reason"] == finish
    assert (await streamed({"finishReason": reason}))[0].finish == [finish]


async def test_an_answer_that_oracle_gave_up_is_an_error() -> None:
    """And more than one answer is not asked for, since but one would be read."""
    found, _ = await streamed({"finishReason": "ERROR_LIMIT"})
    assert found.error is not None
    assert found.done is False
    status, error = await refusal(opened(says(Script()), provider="oci", options=OCI), body(LLAMA, "hi", n=2))
    assert (status, error["param"]) == (400, "n")


def test_wrong_settings_of_oracle_s_are_told_with_what_to_write(tmp_path: Path) -> None:
    """Before anything is served; a key's file is read then, and only then."""
    (tmp_path / "key.pem").write_text(PEM)
    without = {name: value for name, value in OCI.items() if name != "oci_key"}
    opened(says(Script()), provider="oci", options={**without, "oci_key_file": f"{tmp_path}/key.pem"}, api_keys=())
    for options, message in (
        ({}, "`oci_user` is missing"),
        (without, "`oci_key` is missing"),
        ({**without, "oci_key_file": "/nowhere"}, "oci_key_file: cannot be read"),
        ({**OCI, "oci_key": "x"}, "oci_key: not an RSA key"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(says(Script()), provider="oci", options=options, api_keys=())
    with pytest.raises(ValueError, match="`oci_region` is missing"):
        opened(
            says(Script()),
            provider="oci",
            base_url=None,
            options={name: value for name, value in OCI.items() if name != "oci_region"},
            api_keys=(),
        )


async def test_each_is_asked_in_its_own_words() -> None:
    """As its reference has it."""
    sent = await sent_to("nlp_cloud", body("m", "hi", max_tokens=9, temperature=0.5))
    assert sent.header("authorization") == "Token the-key"
    assert orjson.loads(sent.body) == {"text": "hi", "max_length": 9, "temperature": 0.5}
    sent = await sent_to("bytez", body("org/m", "hi", max_tokens=9, stream=False))
    assert sent.header("authorization") == "Key the-key"
    assert orjson.loads(sent.body) == {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "stream": False,
        "params": {"max_new_tokens": 9},
    }
    sent = await sent_to("langgraph", body("agent", {"role": "system", "content": "be brief"}, "hi"))
    assert orjson.loads(sent.body) == {
        "assistant_id": "agent",
        "input": {"messages": [{"role": "system", "content": "be brief"}, {"role": "human", "content": "hi"}]},
    }
    sent = await sent_to("langflow", body("flow-1", "hi"))
    assert sent.header("x-api-key") == "the-key"
    assert orjson.loads(sent.body) == {"input_value": "hi", "input_type": "chat", "output_type": "chat"}
    sent = await sent_to("fal_ai", body("fal-ai/any-vlm", {"role": "user", "content": SEEN}))
    assert orjson.loads(sent.body) == {"prompt": "hi", "image_url": PICTURE}


async def test_what_litellm_cannot_put_into_words_is_the_client_s_mistake() -> None:
    """fal.ai takes one image, no more and no fewer."""
    inner = says(Script(500))
    status, error = await refusal(opened(inner, provider="fal_ai"), body("fal-ai/any-vlm", "hi"))
    assert (status, inner.sent) == (400, [])
    assert "cannot be translated for fal_ai" in error["message"]


async def test_an_answer_that_has_not_the_provider_s_shape_is_no_answer() -> None:
    """It is told as a failure of the backend's."""
    wire = opened(says(Script(200, [b'{"odd": 1}'])), provider="nlp_cloud")
    with pytest.raises(ProtocolError, match="cannot read"):
        await all_of(await ask(wire, body("m", "hi")))
