"""What Gemini's generateContent takes, and what it refuses; camelCase and snake_case both name a field there."""

from typing import Annotated, Any, Literal

from pydantic import AliasGenerator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from tests.providers.said import Asked, Tool, picture_of
from tests.providers.shapes import Problem, Shape, Wrong

_SCHEMA = frozenset(
    {
        *("type", "format", "title", "description", "nullable", "enum", "properties", "required", "items", "anyOf"),
        *("maxItems", "minItems", "minProperties", "maxProperties", "minLength", "maxLength", "minimum", "maximum"),
        *("pattern", "example", "default", "propertyOrdering", "additionalProperties", "any_of", "property_ordering"),
        *("max_items", "min_items", "min_length", "max_length", "min_properties", "max_properties"),
    }
)
_TYPES = frozenset(("STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL"))
_IMAGES = frozenset(("image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"))


class _Proto(Shape):
    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=to_camel), populate_by_name=True, extra="forbid", strict=True
    )


class _Blob(_Proto):
    mime_type: str
    data: str


class _File(_Proto):
    mime_type: str | None = None
    file_uri: str


class _Call(_Proto):
    id: str | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}$")]
    args: dict[str, Any] | None = None


class _Result(_Proto):
    id: str | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}$")]
    response: dict[str, Any]


class _Part(_Proto):
    text: str | None = None
    inline_data: _Blob | None = None
    file_data: _File | None = None
    function_call: _Call | None = None
    function_response: _Result | None = None
    thought: bool | None = None
    thought_signature: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "_Part":
        kinds = (self.text, self.inline_data, self.file_data, self.function_call, self.function_response)
        if sum(each is not None for each in kinds) != 1:
            raise ValueError("required oneof field 'data' must have one initialized field")
        return self


class _Content(_Proto):
    role: str | None = None
    parts: list[_Part]


class _Function(_Proto):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    parameters_json_schema: dict[str, Any] | None = None
    response: dict[str, Any] | None = None


class _Tools(_Proto):
    function_declarations: list[_Function] | None = None
    google_search: dict[str, Any] | None = None
    code_execution: dict[str, Any] | None = None


class _Calling(_Proto):
    mode: Literal["AUTO", "ANY", "NONE", "VALIDATED"]
    allowed_function_names: list[str] | None = None


class _ToolConfig(_Proto):
    function_calling_config: _Calling | None = None


class _Thinking(_Proto):
    thinking_budget: int | None = None
    include_thoughts: bool | None = None


class _Config(_Proto):
    stop_sequences: Annotated[list[str], Field(max_length=5)] | None = None
    response_mime_type: Literal["text/plain", "application/json", "text/x.enum"] | None = None
    response_schema: dict[str, Any] | None = None
    response_json_schema: dict[str, Any] | None = None
    candidate_count: int | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_logprobs: bool | None = None
    logprobs: int | None = None
    thinking_config: _Thinking | None = None


class Generate(_Proto):
    """The body of `generateContent`."""

    contents: list[_Content]
    system_instruction: _Content | None = None
    tools: list[_Tools] | None = None
    tool_config: _ToolConfig | None = None
    safety_settings: list[dict[str, Any]] | None = None
    generation_config: _Config | None = None
    cached_content: str | None = None
    labels: dict[str, str] | None = None


def _wrong(says: str) -> Wrong:
    return Wrong(Problem("value_error", (), says, None))


def check(request: Generate) -> None:
    """The rules that are not of shape. Raises Wrong."""
    if not request.contents:
        raise _wrong("* GenerateContentRequest.contents: contents is not specified")
    for place, content in enumerate(request.contents):
        if content.role not in (None, "user", "model"):
            raise _wrong("Please use a valid role: user, model.")
        if not content.parts:
            raise _wrong(f"* GenerateContentRequest.contents[{place}].parts: contents.parts must not be empty.")
        _check_turn(request, place)
    for each in _functions(request):
        if each.parameters is not None:
            _check_schema(each.parameters, "tools[0].function_declarations[0].parameters")
    config = request.generation_config
    if config is not None and (config.response_schema or config.response_json_schema):
        if config.response_mime_type != "application/json":
            raise _wrong("Response schema requires a JSON response mime type")
        _check_schema(config.response_schema or {}, "generation_config.response_schema")
        if _functions(request):
            raise _wrong("Function calling with a response mime type: 'application/json' is unsupported")


def _check_turn(request: Generate, place: int) -> None:
    content = request.contents[place]
    for part in content.parts:
        blob = part.inline_data
        if blob is not None and (blob.mime_type not in _IMAGES or picture_of(blob.mime_type, blob.data) is None):
            raise _wrong(f"Unable to process input image, or unsupported MIME type: {blob.mime_type}")
    calls = [part for part in content.parts if part.function_call]
    if calls:
        if place == 0 or request.contents[place - 1].role not in (None, "user", "function"):
            raise _wrong(
                "Please ensure that function call turn comes immediately after a user turn or after a function response turn."
            )
        after = request.contents[place + 1].parts if place + 1 < len(request.contents) else []
        if len([part for part in after if part.function_response]) != len(calls):
            raise _wrong(
                "Please ensure that the number of function response parts is equal to the number of function call parts of the function call turn."
            )


def _check_schema(schema: Any, where: str) -> None:
    """OpenAPI 3.0's subset: a name that it does not have is an unknown field of the message Schema."""
    if not isinstance(schema, dict):
        return
    for name in schema:
        if name not in _SCHEMA:
            raise Wrong(Problem("extra_forbidden", (*where.split("."), name), "", None))
    kind = schema.get("type")
    if kind is not None and str(kind).upper() not in _TYPES:
        raise _wrong(
            f"Invalid value at '{where}.type' (type.googleapis.com/google.ai.generativelanguage.v1beta.Type), \"{kind}\""
        )
    for name, each in (schema.get("properties") or {}).items():
        _check_schema(each, f"{where}.properties.{name}")
    _check_schema(schema.get("items"), f"{where}.items")


def _functions(request: Generate) -> list[_Function]:
    return [each for tools in request.tools or () for each in tools.function_declarations or ()]


def asked_of(request: Generate) -> Asked:
    """What the request asks for."""
    users = [content for content in request.contents if content.role != "model"]
    texts = [content for content in users if any(part.text for part in content.parts)]
    last, end = users[-1], request.contents[-1]
    blobs = [part.inline_data for part in last.parts if part.inline_data]
    results = [part.function_response.response for part in last.parts if part.function_response]
    config = request.generation_config or _Config()
    calling = request.tool_config.function_calling_config if request.tool_config else None
    allowed = calling.allowed_function_names if calling else None
    return Asked(
        text=_text(texts[-1]) if texts else "",
        system=_text(request.system_instruction) if request.system_instruction else "",
        images=[picture_of(blob.mime_type, blob.data) or "" for blob in blobs],
        results=[str(next(iter(each.values()))) if len(each) == 1 else str(each) for each in results],
        tools=[
            Tool(each.name, (each.parameters or each.parameters_json_schema or {}).get("properties") or {})
            for each in _functions(request)
            if allowed is None or each.name in allowed
        ],
        may_call=calling is None or calling.mode != "NONE",
        wants_json=config.response_mime_type == "application/json",
        begun=_text(end) if end.role == "model" else "",
        limit=config.max_output_tokens,
        stop=config.stop_sequences or (),
    )


def _text(content: _Content) -> str:
    return "".join(part.text or "" for part in content.parts)
