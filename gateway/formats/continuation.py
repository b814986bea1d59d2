"""Goes on with a stream that was cut: what was delivered becomes the assistant's beginning, two streams one."""

from collections.abc import Mapping
from typing import Any

from gateway.formats.usage import Usage

_MERGED = ("prompt_tokens", "completion_tokens", "total_tokens")


class Continuation:
    """Makes the chunks of a later stream those of the first: one id, one role, no repeated text, usage added up.

    `used` is what was consumed before it. `place` is where the first stream stood in the client's format, of a format
    that has places.
    """

    __slots__ = ("_echo", "_held", "_skip", "created", "model", "place", "response_id", "used")

    def __init__(
        self, *, response_id: str, created: int, model: str, delivered: str, used: Usage, place: object = None
    ) -> None:
        self.response_id = response_id
        self.created = created
        self.model = model
        self.place = place
        self.used = used
        self._echo = delivered
        self._skip = delivered[len(delivered.rstrip()) :]
        self._held = ""

    def rewrite(self, doc: dict[str, Any]) -> dict[str, Any] | None:
        """The chunk as the client should see it; None when nothing of it is left."""
        doc = {**doc, "id": self.response_id, "created": self.created, "model": self.model}
        usage = doc.get("usage")
        if isinstance(usage, dict):
            doc["usage"] = self._added(usage)
        choices = doc.get("choices")
        if not isinstance(choices, list):
            return doc
        kept = [choice for choice in map(self._choice, choices) if choice is not None]
        if choices and not kept:
            return None
        return {**doc, "choices": kept} if choices else doc

    def _choice(self, choice: Any) -> Any:
        if not isinstance(choice, dict):
            return choice
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return choice
        delta = {name: value for name, value in delta.items() if name != "role"}
        ends = choice.get("finish_reason") is not None
        if isinstance(delta.get("content"), str):
            delta["content"] = self._fresh(delta["content"], ends=ends)
            if not delta["content"]:
                del delta["content"]
        elif ends and self._held:
            delta["content"] = self._release()
        if not ends and not any(delta.values()):
            return None
        return {**choice, "delta": delta}

    def _fresh(self, content: str, *, ends: bool) -> str:
        """What was not delivered before: a backend may repeat the beginning it was given, or its last space."""
        self._held += content
        if not ends and len(self._held) < len(self._echo) and self._echo.startswith(self._held):
            return ""
        return self._release()

    def _release(self) -> str:
        text, self._held = self._held, ""
        if self._echo and text.startswith(self._echo):
            text = text[len(self._echo) :]
        elif self._skip:
            text = text.removeprefix(self._skip)
        self._echo = self._skip = ""
        return text

    def _added(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        more = {
            "prompt_tokens": self.used.input_tokens,
            "completion_tokens": self.used.output_tokens,
            "total_tokens": self.used.total_tokens,
        }
        said = {name: usage.get(name) for name in _MERGED}
        return {**usage, **{name: (n if type(n) is int else 0) + more[name] for name, n in said.items()}}
