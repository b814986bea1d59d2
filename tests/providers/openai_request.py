"""What OpenAI's chat completions take: the shapes of a request, and what it asks for."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from tests.providers.said import Asked, Tool, picture_of_url
from tests.providers.shapes import Shape, flat


class Text(Shape):
    """A part of a message that is text."""

    type: Literal["text"]
    text: str


class ImageUrl(Shape):
    """Where an image is."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class Image(Shape):
    """A part of a message that is an image."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[Text | Image, Field(discriminator="type")]


class System(Shape):
    """What the developer says."""

    role: Literal["system", "developer"]
    content: str | list[Text]
    name: str | None = None


class User(Shape):
    """What the user says."""

    role: Literal["user"]
    content: str | list[Part]
    name: str | None = None


class Function(Shape):
    """What is called, with its arguments as JSON in a string."""

    name: str
    arguments: str


class ToolCall(Shape):
    """One call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: Function
    index: int | None = None


class Assistant(Shape):
    """What the assistant said."""

    role: Literal["assistant"]
    content: str | list[Text] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class ToolMessage(Shape):
    """What a tool gave back."""

    role: Literal["tool"]
    content: str | list[Text]
    tool_call_id: str


class Declared(Shape):
    """A function, as it is declared."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolShape(Shape):
    """A tool."""

    type: Literal["function"]
    function: Declared


class Named(Shape):
    """The name of a function."""

    name: str


class Chosen(Shape):
    """The tool that must be called."""

    type: Literal["function"]
    function: Named


class JsonSchema(Shape):
    """A schema with a name."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class Format(Shape):
    """How the answer is written."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Shape):
    """What a stream has besides."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Message = Annotated[System | User | Assistant | ToolMessage, Field(discriminator="role")]


class Chat(Shape):
    """The fields that all of them know."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None
    tools: list[ToolShape] | None = None
    tool_choice: Literal["none", "auto", "required"] | Chosen | None = None
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None
    user: str | None = None


def asked_of(body: Mapping[str, Any], limit_field: str = "max_tokens") -> Asked:
    """What a request in this shape asks for."""
    messages = body["messages"]
    users = [place for place, each in enumerate(messages) if each["role"] == "user"]
    last = messages[users[-1]] if users else {"content": ""}
    after = messages[users[-1] + 1 :] if users else messages
    parts: Sequence[Any] = last["content"] if isinstance(last["content"], list) else ()
    images = [each["image_url"] for each in parts if each["type"] == "image_url"]
    urls = [each if isinstance(each, str) else each["url"] for each in images]
    choice = body.get("tool_choice")
    wanted = choice["function"]["name"] if isinstance(choice, Mapping) else None
    declared = [each["function"] for each in body.get("tools") or ()]
    stop = body.get("stop") or ()
    end = messages[-1]
    return Asked(
        text=flat(last["content"]),
        system=" ".join(flat(each["content"]) for each in messages if each["role"] in ("system", "developer")),
        images=[picture_of_url(url) or url for url in urls],
        results=[flat(each["content"]) for each in after if each["role"] == "tool"],
        tools=[
            Tool(each["name"], (each.get("parameters") or {}).get("properties") or {})
            for each in declared
            if wanted in (None, each["name"])
        ],
        may_call=choice != "none",
        wants_json=(body.get("response_format") or {}).get("type") in ("json_object", "json_schema"),
        begun=flat(end.get("content")) if end["role"] == "assistant" else "",
        limit=body.get(limit_field),
        stop=[stop] if isinstance(stop, str) else stop,
    )
