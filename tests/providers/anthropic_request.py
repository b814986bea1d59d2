"""What Anthropic's Messages API takes, and what it refuses: https://docs.anthropic.com/en/api/messages."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from tests.providers.said import Asked, Tool, picture_of
from tests.providers.shapes import Problem, Shape, Wrong

MAX_OUTPUT = 64_000


class _Cache(Shape):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Block(Shape):
    cache_control: _Cache | None = None


class _Text(_Block):
    type: Literal["text"]
    text: str
    citations: list[Any] | None = None


class _Base64(Shape):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class _Url(Shape):
    type: Literal["url"]
    url: str


class _Image(_Block):
    type: Literal["image"]
    source: Annotated[_Base64 | _Url, Field(discriminator="type")]


class _ToolUse(_Block):
    type: Literal["tool_use"]
    id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$")]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    input: dict[str, Any]


class _Thinking(Shape):
    type: Literal["thinking"]
    thinking: str
    signature: str


def _blocks(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class _ToolResult(_Block):
    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$")]
    content: Annotated[
        list[Annotated[_Text | _Image, Field(discriminator="type")]] | None, BeforeValidator(_blocks)
    ] = None
    is_error: bool | None = None


_Content = Annotated[_Text | _Image | _ToolUse | _ToolResult | _Thinking, Field(discriminator="type")]


class _Message(Shape):
    role: Literal["user", "assistant"]
    content: Annotated[list[_Content], BeforeValidator(_blocks)]


class _Schema(Shape):
    model_config: ClassVar[Any] = {"extra": "allow", "strict": True}
    type: Literal["object"]


class _Tool(_Block):
    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    description: str | None = None
    input_schema: _Schema
    strict: bool | None = None
    eager_input_streaming: bool | None = None


class _Choice(Shape):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Budget(Shape):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1024)] | None = None


class _Format(Shape):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class _Output(Shape):
    format: _Format | None = None
    effort: Literal["low", "medium", "high", "max"] | None = None


class _Metadata(Shape):
    user_id: Annotated[str, Field(max_length=256)] | None = None


class Prompt(Shape):
    """The body of `POST /v1/messages/count_tokens`."""

    model: str
    messages: Annotated[list[_Message], Field(min_length=1)]
    system: Annotated[list[_Text] | None, BeforeValidator(_blocks)] = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    thinking: _Budget | None = None
    output_config: _Output | None = None


class Messages(Prompt):
    """The body of `POST /v1/messages`."""

    max_tokens: Annotated[int, Field(ge=1)]
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    metadata: _Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    output_format: _Format | None = None


def said_of(problem: Problem) -> str:
    """The message for a problem of shape: `messages.0.content: Field required`."""
    places = [each for each in problem.place if not str(each).startswith(("list[", "function-"))]
    return f"{'.'.join(map(str, places))}: {problem.says}"


def _wrong(place: str, says: str) -> Wrong:
    return Wrong(Problem("value_error", (place,) if place else (), says, None))


def check(request: Prompt) -> None:
    """The rules that are not of shape. Raises Wrong."""
    if isinstance(request, Messages):
        _check_settings(request)
    if request.messages[0].role != "user":
        raise _wrong("messages", 'first message must use the "user" role')
    if request.tool_choice is not None and not request.tools:
        raise _wrong("tool_choice", "may only be specified while providing `tools`")
    for place, message in enumerate(request.messages):
        _check_message(request, place, message)
    names = [tool.name for tool in request.tools or ()]
    if len(names) != len(set(names)):
        raise _wrong("tools", "Tool names must be unique.")
    marked = str(request.model_dump(exclude_none=True)).count("'cache_control':")
    if marked > 4:
        raise _wrong("", f"A maximum of 4 blocks with cache_control may be provided. Found {marked}.")


def _check_settings(request: Messages) -> None:
    if request.max_tokens > MAX_OUTPUT:
        text = f"{request.max_tokens} > {MAX_OUTPUT}, which is the maximum allowed number of output tokens for {request.model}"
        raise _wrong("max_tokens", text)
    if request.temperature is not None and request.top_p is not None:
        raise _wrong("", "`temperature` and `top_p` cannot both be specified for this model. Please use only one.")
    if any(not each.strip() for each in request.stop_sequences or ()):
        raise _wrong("stop_sequences", "each stop sequence must contain non-whitespace")


def _check_message(request: Prompt, place: int, message: _Message) -> None:
    last = place == len(request.messages) - 1
    where = f"messages.{place}"
    if not message.content and not (last and message.role == "assistant"):
        raise _wrong(where, "all messages must have non-empty content except for the optional final assistant message")
    texts = [block.text for block in message.content if isinstance(block, _Text)]
    if any(not text.strip() for text in texts):
        raise _wrong("messages", "text content blocks must contain non-whitespace text")
    if last and message.role == "assistant" and texts and texts[-1] != texts[-1].rstrip():
        raise _wrong("messages", "final assistant content cannot end with trailing whitespace")
    for block in message.content:
        source = block.source if isinstance(block, _Image) else None
        if isinstance(source, _Base64) and picture_of(source.media_type, source.data) is None:
            raise _wrong(f"{where}.content.0.image.source.base64", "invalid base64 data")
    called = {block.id for block in message.content if isinstance(block, _ToolUse)}
    if called and message.role == "user":
        raise _wrong(where, "`tool_use` blocks can only be in `assistant` messages")
    following = () if last else request.messages[place + 1].content
    told = {block.tool_use_id for block in following if isinstance(block, _ToolResult)}
    if called - told:
        text = "`tool_use` ids were found without `tool_result` blocks immediately after: "
        raise _wrong(
            where,
            f"{text}{', '.join(sorted(called - told))}. Each `tool_use` block must have a corresponding `tool_result` block in the next message.",
        )
    if told - called:
        text = "unexpected `tool_use_id` found in `tool_result` blocks: "
        raise _wrong(f"messages.{place + 1}.content.0", f"{text}{', '.join(sorted(told - called))}.")
    if place == 0 and any(isinstance(block, _ToolResult) for block in message.content):
        raise _wrong("messages.0.content.0", "unexpected `tool_use_id` found in `tool_result` blocks.")
    if called and request.tools is None:
        raise _wrong("", "Requests which include `tool_use` or `tool_result` blocks must define tools")


def asked_of(request: Prompt) -> Asked:
    """What the request asks for."""
    asked = [message for message in request.messages if message.role == "user"]
    texts = [block.text for message in asked for block in message.content if isinstance(block, _Text)]
    blocks = asked[-1].content
    sources = [block.source for block in blocks if isinstance(block, _Image)]
    told = [block.content or () for block in blocks if isinstance(block, _ToolResult)]
    settings = request if isinstance(request, Messages) else None
    format_ = (settings and settings.output_format) or (request.output_config and request.output_config.format)
    choice = request.tool_choice
    wanted = choice.name if choice is not None and choice.type == "tool" else None
    return Asked(
        text=texts[-1] if texts else "",
        system=" ".join(block.text for block in request.system or ()),
        images=[picture_of(each.media_type, each.data) or "" for each in sources if isinstance(each, _Base64)],
        results=["".join(part.text for part in content if isinstance(part, _Text)) for content in told],
        tools=[
            Tool(each.name, (each.input_schema.model_extra or {}).get("properties") or {})
            for each in request.tools or ()
            if wanted in (None, each.name)
        ],
        may_call=choice is None or choice.type != "none",
        wants_json=format_ is not None,
        begun=_begun(request.messages[-1]),
        limit=settings.max_tokens if settings else None,
        stop=(settings and settings.stop_sequences) or (),
    )


def _begun(last: _Message) -> str:
    return "".join(block.text for block in last.content if isinstance(block, _Text)) if last.role == "assistant" else ""
