"""What Bedrock's Converse takes, and what it refuses: https://docs.aws.amazon.com/bedrock/latest/APIReference."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tests.providers.said import Asked, Tool, picture_of
from tests.providers.shapes import Problem, Shape, Wrong


class _Union(Shape):
    """An object of which exactly one member is set."""

    @model_validator(mode="after")
    def _one(self) -> "_Union":
        if len(self.model_fields_set) != 1:
            raise ValueError("exactly one member of a union must be set")
        return self


class _Bytes(_Union):
    bytes: str | None = None
    s3Location: dict[str, str] | None = None  # noqa: N815 the service's names


class _Image(Shape):
    format: Literal["png", "jpeg", "gif", "webp"]
    source: _Bytes


class _ToolUse(Shape):
    toolUseId: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:-]{1,64}$")]  # noqa: N815
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    input: dict[str, Any]


class _ResultContent(_Union):
    text: str | None = None
    json_: Any = Field(None, alias="json")
    image: _Image | None = None


class _ToolResult(Shape):
    toolUseId: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:-]{1,64}$")]  # noqa: N815
    content: list[_ResultContent]
    status: Literal["success", "error"] | None = None


class _CachePoint(Shape):
    type: Literal["default"]
    ttl: Literal["5m", "1h"] | None = None


class _Block(_Union):
    text: str | None = None
    image: _Image | None = None
    toolUse: _ToolUse | None = None  # noqa: N815
    toolResult: _ToolResult | None = None  # noqa: N815
    cachePoint: _CachePoint | None = None  # noqa: N815
    reasoningContent: dict[str, Any] | None = None  # noqa: N815


class _Message(Shape):
    role: Literal["user", "assistant"]
    content: list[_Block]


class _System(_Union):
    text: Annotated[str, Field(min_length=1)] | None = None
    cachePoint: _CachePoint | None = None  # noqa: N815


class _Inference(Shape):
    maxTokens: Annotated[int, Field(ge=1)] | None = None  # noqa: N815
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    topP: Annotated[float, Field(ge=0, le=1)] | None = None  # noqa: N815
    stopSequences: list[str] | None = None  # noqa: N815


class _InputSchema(Shape):
    json_: dict[str, Any] = Field(alias="json")


class _Spec(Shape):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, Field(min_length=1)] | None = None
    inputSchema: _InputSchema  # noqa: N815
    strict: bool | None = None


class _Tool(_Union):
    toolSpec: _Spec | None = None  # noqa: N815
    cachePoint: _CachePoint | None = None  # noqa: N815


class _Named(Shape):
    name: str


class _Choice(_Union):
    auto: dict[str, Any] | None = None
    any: dict[str, Any] | None = None
    tool: _Named | None = None


class _Tools(Shape):
    tools: Annotated[list[_Tool], Field(min_length=1)]
    toolChoice: _Choice | None = None  # noqa: N815


class Converse(Shape):
    """The body of `converse` and `converse-stream`."""

    messages: list[_Message] | None = None
    system: list[_System] | None = None
    inferenceConfig: _Inference | None = None  # noqa: N815
    toolConfig: _Tools | None = None  # noqa: N815
    additionalModelRequestFields: dict[str, Any] | None = None  # noqa: N815
    additionalModelResponseFieldPaths: list[str] | None = None  # noqa: N815
    requestMetadata: dict[str, str] | None = None  # noqa: N815
    performanceConfig: dict[str, str] | None = None  # noqa: N815
    outputConfig: dict[str, Any] | None = None  # noqa: N815


def _wrong(says: str) -> Wrong:
    return Wrong(Problem("value_error", (), says, None))


def check(request: Converse) -> None:
    """The rules that are not of shape. Raises Wrong."""
    messages = request.messages or []
    if not messages or messages[0].role != "user":
        raise _wrong(
            "A conversation must start with a user message. Try again with a conversation that starts with a user message."
        )
    for place, message in enumerate(messages):
        if place and message.role == messages[place - 1].role:
            text = (
                "A conversation must alternate between user and assistant roles. Make sure the conversation alternates "
            )
            raise _wrong(f"{text}between user and assistant roles and try again.")
        if not message.content:
            raise _wrong(
                f"The content field in the Message object at messages.{place} is empty. Add a ContentBlock object."
            )
        if any(block.text is not None and not block.text.strip() for block in message.content):
            raise _wrong(f"The text field in the ContentBlock object at messages.{place}.content.0 is blank. Add text.")
        called = {block.toolUse.toolUseId for block in message.content if block.toolUse}
        after = messages[place + 1].content if place + 1 < len(messages) else []
        told = {block.toolResult.toolUseId for block in after if block.toolResult}
        if called != told:
            text = f"Expected toolResult blocks at messages.{place + 1}.content for the following Ids: "
            raise _wrong(text + ", ".join(sorted(called - told)))
        uses = any(block.toolUse or block.toolResult for block in message.content)
        if uses and request.toolConfig is None:
            raise _wrong("The toolConfig field must be defined when using toolUse and toolResult content blocks.")
    end = messages[-1]
    if end.role == "assistant" and end.content[-1].text and end.content[-1].text != end.content[-1].text.rstrip():
        raise _wrong("messages: final assistant content cannot end with trailing whitespace")


def asked_of(request: Converse) -> Asked:
    """What the request asks for."""
    messages = request.messages or []
    users = [message for message in messages if message.role == "user"]
    texts = [block.text for message in users for block in message.content if block.text]
    images = [block.image for block in users[-1].content if block.image]
    results = [block.toolResult for block in users[-1].content if block.toolResult]
    tools = request.toolConfig
    choice = tools.toolChoice if tools else None
    wanted = choice.tool.name if choice and choice.tool else None
    specs = [tool.toolSpec for tool in tools.tools if tool.toolSpec] if tools else []
    settings = request.inferenceConfig or _Inference()
    end = messages[-1]
    return Asked(
        text=texts[-1] if texts else "",
        system=" ".join(block.text for block in request.system or () if block.text),
        images=[picture_of(f"image/{each.format}", each.source.bytes or "") or "" for each in images],
        results=["".join(part.text or str(part.json_) for part in each.content) for each in results],
        tools=[
            Tool(each.name, each.inputSchema.json_.get("properties") or {})
            for each in specs
            if wanted in (None, each.name)
        ],
        wants_json="textFormat" in (request.outputConfig or {}),
        begun="".join(block.text or "" for block in end.content) if end.role == "assistant" else "",
        limit=settings.maxTokens,
        stop=settings.stopSequences or (),
    )
