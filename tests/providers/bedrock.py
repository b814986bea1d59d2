"""Claude at Amazon Bedrock: Converse and InvokeModel, whole and as an event stream, signed by Signature Version 4."""

import base64
import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from tests.providers import anthropic_request
from tests.providers.anthropic import message, payloads
from tests.providers.aws import event, exception, problem_of_signature
from tests.providers.bedrock_request import Converse, asked_of, check
from tests.providers.openai_shape import pieces_of
from tests.providers.said import Said, say
from tests.providers.server import Answer, Fake, Got, Refused, as_events, as_json
from tests.providers.shapes import Wrong, read_as

REGION = "us-east-1"
_PATH = re.compile(r"/model/([^/]+)/(converse|converse-stream|invoke|invoke-with-response-stream)")
_STREAM = "application/vnd.amazon.eventstream"
_STATUS = {
    "ValidationException": 400,
    "AccessDeniedException": 403,
    "UnrecognizedClientException": 403,
    "InvalidSignatureException": 403,
    "MissingAuthenticationTokenException": 403,
    "ResourceNotFoundException": 404,
    "UnknownOperationException": 404,
    "ThrottlingException": 429,
    "InternalServerException": 500,
    "ServiceUnavailableException": 503,
}
_ENDING = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "stop_sequence": "stop_sequence"}


class _Invoke(anthropic_request.Messages):
    """Claude's own body: the version instead of the model, and no `stream`, which the path says."""

    model: str = ""
    anthropic_version: str
    anthropic_beta: list[str] | None = None


class Bedrock(Fake):
    """The fake. The keys are an access key and its secret, in one region."""

    name: ClassVar[str] = "bedrock"
    key: ClassVar[str] = "AKIAFAKE"
    secret: ClassVar[str] = "fake-secret/with+signs"
    model: ClassVar[str] = "anthropic.claude-3-5-sonnet-20240620-v1:0"

    def answer(self, got: Got) -> Answer:
        self.authorise(got)
        found = _PATH.fullmatch(got.path)
        if found is None or got.method != "POST":
            raise self.refusal("UnknownOperationException", "")
        name, verb = found.groups()
        if name != self.model:
            raise self.refusal("ValidationException", "The provided model identifier is invalid.")
        try:
            return self.converse(got, verb) if verb.startswith("converse") else self.invoke(got, verb)
        except Wrong as wrong:
            places = [str(each) for each in wrong.problem.place if not str(each).startswith(("list[", "function-"))]
            if wrong.problem.kind == "value_error" and not places:
                raise self.refusal("ValidationException", wrong.problem.says) from wrong
            if wrong.problem.kind == "extra_forbidden" and verb.startswith("converse"):
                text = f"The model returned the following errors: extraneous key [{places[-1]}] is not permitted"
                raise self.refusal("ValidationException", text) from wrong
            raise self.refusal("ValidationException", f"{'.'.join(places)}: {wrong.problem.says}") from wrong

    def authorise(self, got: Got) -> None:
        """Raise Refused unless the signature holds."""
        problem = problem_of_signature(got, self.key, self.secret, REGION, "bedrock")
        if problem is None:
            return
        kind = "InvalidSignatureException" if "signature" in problem else "UnrecognizedClientException"
        raise self.refusal("MissingAuthenticationTokenException" if "Missing" in problem else kind, problem)

    def converse(self, got: Got, verb: str) -> Answer:
        """The provider-neutral operation."""
        request = read_as(Converse, got.body)
        check(request)
        said = say(asked_of(request))
        if verb == "converse-stream":
            return as_events(self.events(said), kind=_STREAM)
        return as_json(
            {
                "output": {"message": {"role": "assistant", "content": _content(said)}},
                "stopReason": _ENDING[said.ending],
                "usage": _usage(said),
                "metrics": {"latencyMs": 12},
            }
        )

    def invoke(self, got: Got, verb: str) -> Answer:
        """Claude's own format; the stream has each of its events in base64."""
        request = read_as(_Invoke, got.body)
        anthropic_request.check(request)
        if request.stream is not None or "model" in request.model_fields_set:
            name = "stream" if request.stream is not None else "model"
            raise self.refusal("ValidationException", f"{name}: Extra inputs are not permitted")
        if request.anthropic_version != "bedrock-2023-05-31":
            raise self.refusal("ValidationException", "anthropic_version: Input should be 'bedrock-2023-05-31'")
        said = say(anthropic_request.asked_of(request))
        if verb == "invoke":
            return as_json(message("claude-3-5-sonnet-20240620", said))
        parts = (json.dumps(each, ensure_ascii=False).encode() for each in payloads("claude-3-5-sonnet-20240620", said))
        return as_events((event("chunk", {"bytes": base64.b64encode(part).decode()}) for part in parts), kind=_STREAM)

    def refusal(self, kind: str, message: str) -> Refused:
        """An exception of this kind."""
        return Refused(self.error(kind, message))

    def error(self, kind: str, message: str) -> Answer:
        """The exception's body, with its name in a header."""
        return as_json({"message": message}, _STATUS[kind], {"x-amzn-errortype": kind, "x-amzn-requestid": "fake"})

    def fail(self, mood: str) -> Answer:
        if mood == "rate_limited":
            return self.error("ThrottlingException", "Too many requests, please wait before trying again.")
        if mood == "overloaded":
            return self.error("ServiceUnavailableException", "Bedrock is unable to process your request.")
        if mood == "too_long":
            text = "The model returned the following errors: Input is too long for requested model."
            return self.error("ValidationException", text)
        return self.error(
            "InternalServerException", "The system encountered an unexpected error. Try your request again."
        )

    def broken_event(self) -> bytes:
        return exception("throttlingException", "Too many requests, please wait before trying again.")

    def events(self, said: Said) -> Iterator[bytes]:
        """Converse's events."""
        yield event("messageStart", {"role": "assistant"})
        for index, block in enumerate(_content(said)):
            if "toolUse" in block:
                begun = {name: block["toolUse"][name] for name in ("toolUseId", "name")}
                yield event("contentBlockStart", {"contentBlockIndex": index, "start": {"toolUse": begun}})
            for delta in _deltas(said, block):
                yield event("contentBlockDelta", {"contentBlockIndex": index, "delta": delta})
            yield event("contentBlockStop", {"contentBlockIndex": index})
        yield event("messageStop", {"stopReason": _ENDING[said.ending]})
        yield event("metadata", {"usage": _usage(said), "metrics": {"latencyMs": 12}})


def _content(said: Said) -> list[dict[str, Any]]:
    calls = [
        {"toolUse": {"toolUseId": f"tooluse_fake{n}", "name": call.name, "input": dict(call.arguments)}}
        for n, call in enumerate(said.calls)
    ]
    return [*([{"text": said.text}] if said.tokens else []), *calls]


def _deltas(said: Said, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "text" in block:
        yield from ({"text": token} for token in said.tokens)
    else:
        written = json.dumps(block["toolUse"]["input"], ensure_ascii=False)
        yield from ({"toolUse": {"input": piece}} for piece in pieces_of(written))


def _usage(said: Said) -> dict[str, int]:
    fresh = said.input_tokens - said.cached - said.written
    counts = {"inputTokens": fresh, "outputTokens": said.output_tokens}
    cached = {"cacheReadInputTokens": said.cached, "cacheWriteInputTokens": said.written}
    return {**counts, "totalTokens": said.input_tokens + said.output_tokens, **cached}
