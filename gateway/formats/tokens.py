"""How many tokens a request can have at most, for its hold, and about how many a text has, for usage nobody reported.

The bound needs no tokenizer. Every tokenizer in use works on bytes or falls back to them, so a token stands for at
least one byte of UTF-8; and JSON's text is never shorter than the strings in it, since an escape (`\\n`, `\\u00e9`,
a pair of surrogates) is longer than the bytes it stands for, nor than a list of token ids, each a digit and a comma.
A message's JSON syntax (`{"role":"","content":""}`) is longer than any template's marks around it. So the body's
length bounds its text, and only these must be added: what a template puts before everything; tools, which templates
print again with indentation; the few characters that Unicode's normal forms spell out; and media, whose base64 is
replaced by the providers' published formulas. Where the request only points at its content (a file, an earlier answer,
a search made by the backend) the bound is `UNBOUNDED`: take the smaller of it and the model's context.
"""

import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import orjson

UNBOUNDED = 10**9
_FRAME = 128  # system lines that chat templates add, and the mark that opens the answer
_TOOLS_FRAME = 1024  # the instructions for using tools that providers add: 346 to 530 at Anthropic
_TOOL_FRAME = 32
_IMAGE_HEAD = 128 * 1024  # characters of base64 in which a picture's size is looked for
_LONGEST_SPELLING = 30  # bytes by which a normal form may lengthen one of _SPELT
_SPELT = re.compile(
    "[\u00a8-\u00be\u013f-\u0149\u01c4-\u01c6\u02d8-\u02dd\u0344\u037a-\u0385\u0587\u0675-\u0678\u0958-\u095f\u09dc-\u09df"
    "\u0a33-\u0a36\u0a59-\u0a5e\u0b5c\u0b5d\u0e33\u0eb3\u0edc\u0edd\u0f43-\u0fb9\u1fc1-\u1fee\u2033-\u2037\u2057"
    "\u2150-\u2177\u2189\u222c-\u2230\u247d-\u2487\u2a0c\u2adc\u309b-\u309f\u30ff\u3200-\u3243\u327c\u327d\u32c0-\u33fe"
    "\ufa6c\ufacf-\ufad7\ufb13-\ufb4f\ufbdd-\ufdfc\ufe71-\ufe7f\ufef5-\ufefc\U0001d15e-\U0001d1c0\U0001f12a"
    "\U0001f200-\U0001f248]"
)
_DEEPEST = 16  # parts within parts; deeper than anyone's format
_ELSEWHERE = ("previous_response_id", "conversation", "web_search_options", "mcp_servers", "plugins")
_IMAGES = frozenset({"image_url", "input_image", "image", "computer_screenshot"})
_POINTERS = frozenset(
    {
        "file", "input_file", "document", "video_url", "video", "input_video", "audio_url", "container_upload",
        "item_reference", "image_generation_call",
    }
)  # fmt: skip


def upper_bound(doc: Mapping[str, Any], raw_length: int | None = None, model: str = "") -> int:
    """A number that the input tokens of this request will not exceed.

    `doc` is the parsed body of chat, completions, embeddings, responses or Anthropic's messages, `raw_length` its
    length in bytes (measured again when None). `model` is the backend's own name, which decides the formula for
    pictures; without it the dearest is taken.
    """
    bound = _FRAME + (_length(doc) if raw_length is None else raw_length)
    for name in ("messages", "input", "system", "prompt", "instructions"):
        value = doc.get(name)
        if value is not None:
            bound += _extra(value, model, 0)
    if "tools" in doc or "functions" in doc:
        bound += _tools(doc)
    if any(map(doc.get, _ELSEWHERE)):
        bound += UNBOUNDED
    return min(bound, UNBOUNDED)


def _extra(value: Any, model: str, depth: int) -> int:
    """What a text, message, part, or list of them needs beyond its own length; negative where base64 is a picture."""
    if type(value) is str:
        return 0 if value.isascii() else _LONGEST_SPELLING * len(_SPELT.findall(value))
    if type(value) is dict:
        return _item(value, model, depth)
    if type(value) is not list or not value or type(value[0]) is int:
        return 0  # a list of token ids is shorter than its digits
    if depth > _DEEPEST:
        return UNBOUNDED
    extra = 0
    for item in value:
        if type(item) is dict and len(item) == 2 and type(text := item.get("content")) is str and text.isascii():
            continue  # a plain message, quickly
        extra += _extra(item, model, depth + 1)
    return extra


def _item(item: Mapping[str, Any], model: str, depth: int) -> int:
    kind = item.get("type")
    if type(kind) is str:
        if kind in _IMAGES:
            return _image(item, model)
        if kind == "input_audio":
            return _audio(item)
        if kind in _POINTERS:
            return _pointer(item)
    elif "id" in item and "role" not in item and "content" not in item:
        return UNBOUNDED  # an item or a prompt that the backend keeps
    extra = UNBOUNDED if item.get("audio") else 0  # an earlier answer's audio, by its id
    for name in ("content", "text", "output"):
        value = item.get(name)
        if value is not None:
            extra += _extra(value, model, depth + 1)
    for name in ("tool_calls", "input", "arguments"):
        called = item.get(name)
        if called is not None:
            extra += _length(called)  # templates print the arguments again, with spaces
    return extra


def _length(value: Any) -> int:
    """The length of its JSON in bytes, and what the text in it needs beyond that."""
    try:
        printed = orjson.dumps(value)
    except orjson.JSONEncodeError:
        return UNBOUNDED  # nested too deeply to be written, though not to be read
    return len(printed) + (0 if printed.isascii() else _extra(printed.decode(), "", 0))


def _pointer(item: Mapping[str, Any]) -> int:
    source = item.get("source")
    if isinstance(source, Mapping) and source.get("type") == "text":
        return _extra(source.get("data"), "", 0)
    return UNBOUNDED


def _tools(doc: Mapping[str, Any]) -> int:
    """Templates print the tools with line breaks and indentation: at most twice their length in tokens."""
    bound = _TOOLS_FRAME
    for name in ("tools", "functions"):
        tools = doc.get(name)
        if not isinstance(tools, list) or not tools:
            continue
        if any(isinstance(tool, Mapping) and tool.get("type") not in (None, "function", "custom") for tool in tools):
            return UNBOUNDED  # the backend searches, reads or runs something, and bills what it finds as input
        bound += _length(tools) + _TOOL_FRAME * len(tools)
    return bound


def _image(item: Mapping[str, Any], model: str) -> int:
    holder = item.get("image_url", item.get("source"))
    detail = item.get("detail")
    url: Any = holder
    if isinstance(holder, Mapping):
        detail = holder.get("detail", detail)
        url = holder.get("url", holder.get("data"))
    if not isinstance(url, str):
        return image_tokens(None, model, detail)
    start = url.find(",", 0, 256) + 1 if url.startswith("data:") else 0
    if not start and not (isinstance(holder, Mapping) and "data" in holder):
        return image_tokens(None, model, detail)
    return image_tokens(image_size(url[start : start + _IMAGE_HEAD]), model, detail) - (len(url) - start)


def image_tokens(size: tuple[int, int] | None, model: str = "", detail: object = None) -> int:
    """The most tokens a picture of (width, height) pixels counts for; `size` None is any picture at all.

    OpenAI: 85 + 170 per tile of 512 after scaling to 2048 and to a short side of 768, so at most 8 tiles (gpt-4o-mini:
    2833 + 5667); newer models patches of 32 times up to 2.46, at most 10,000 patches. Anthropic: pixels / 750, at most
    4784. Gemini: 258 per tile of 256 to 768, or up to 2240 a picture. Open models: patches of 16 up to 1024 pixels
    (Pixtral), of 28 up to 16,384 patches (Qwen), or up to 2880 a picture (LLaVA).
    """
    name = model.rsplit("/", 1)[-1]
    if name.startswith("claude"):
        return 4784 if size is None else min(4784, size[0] * size[1] // 750 + 1)
    per_tile = 5667 if "4o-mini" in name or not model else 170
    per_image = 2833 if per_tile == 5667 else 85
    openai = name.startswith(("gpt-", "o1", "o3", "o4", "chatgpt-"))
    if detail == "low" and openai:
        return max(per_image, 630)
    bound = per_image + per_tile * _tiles(size)
    if name.startswith(("gpt-4o", "chatgpt-4o")):
        return bound
    patches = 2500 if detail == "high" and openai else 10_000
    bound = max(bound, -(-246 * min(patches, _cells(size, 32)) // 100))
    return bound if openai else max(bound, _open_tokens(size))


def _tiles(size: tuple[int, int] | None) -> int:
    return 8 if size is None else max(4, min(8, _cells((min(size[0], 2048), min(size[1], 2048)), 512)))


def _cells(size: tuple[int, int] | None, side: int) -> int:
    return UNBOUNDED if size is None else -(-size[0] // side) * -(-size[1] // side)


def _open_tokens(size: tuple[int, int] | None) -> int:
    if size is None:
        return 16_384
    crop = max(256, min(768, min(size) * 2 // 3))
    return max(2880, min(4160, _cells(size, 16) + 64), min(16_384, _cells(size, 28)), 258 * _cells(size, crop))


def image_size(data: str) -> tuple[int, int] | None:
    """(width, height) in pixels from the first characters of a picture's base64: PNG, GIF, WebP or JPEG; else None."""
    try:
        head = b64decode(data[: len(data) & ~3], validate=True)
    except ValueError:
        return None
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR":
        found = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    elif head[:6] in (b"GIF87a", b"GIF89a"):
        found = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        found = _webp_size(head)
    elif head[:2] == b"\xff\xd8":
        found = _jpeg_size(head)
    else:
        return None
    return found if found[0] > 0 and found[1] > 0 else None


def _webp_size(head: bytes) -> tuple[int, int]:
    kind = head[12:16]
    if kind == b"VP8X" and len(head) >= 30:
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L" and len(head) >= 25:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a" and len(head) >= 30:
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return 0, 0


def _jpeg_size(head: bytes) -> tuple[int, int]:
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(head[at + 7 : at + 9]), int.from_bytes(head[at + 5 : at + 7])
        at += 1 if marker == 0xFF else 2 + int.from_bytes(head[at + 2 : at + 4])
    return 0, 0


def _audio(item: Mapping[str, Any]) -> int:
    """Gemini counts 32 tokens a second, OpenAI 10. MP3 has at least 1000 bytes a second; WAV's header says how many."""
    held = item.get("input_audio")
    data = held.get("data") if isinstance(held, Mapping) else None
    if type(data) is not str or not data:
        return UNBOUNDED
    rate = _byte_rate(data)
    return min(0, 32 * (len(data) // rate + 2) - len(data)) if rate else 0


def _byte_rate(data: str) -> int:
    """The fewest bytes that a second of this audio has; 0 when that cannot be told, and each byte may be a token."""
    try:
        head = b64decode(data[:60], validate=True)
    except ValueError:
        return 0
    if head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt ":
        rate = int.from_bytes(head[28:32], "little")
        return rate if rate >= 1000 else 0
    return 1000 if head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0") else 0


_LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
_HAN, _KANA, _HANGUL = "\u3005\u3400-\u4dbf\u4e00-\u9fff", "\u3040-\u30ff", "\uac00-\ud7af"
_LEAD = r"(?:[^\w\r\n]|_)?"  # one mark or space belongs to the letters after it
_PIECE = re.compile(
    rf"{_LEAD}((?:[A-Z\u00c0-\u00d6\u00d8-\u00de]*[a-z\u00df-\u00f6\u00f8-\u024f]+|[A-Z\u00c0-\u00d6\u00d8-\u00de]+))"
    r"(?:'(?:s|t|re|ve|m|ll|d)\b)?"
    rf"|{_LEAD}([{_HAN}]+)|{_LEAD}([{_KANA}]+)|{_LEAD}([{_HANGUL}]+)"
    rf"|{_LEAD}((?:(?![{_LATIN}{_HAN}{_KANA}{_HANGUL}])[^\W\d_])+)"
    r"|(\d{1,3})|( ?(?:[^\w\s]|_)+[\r\n/]*)|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORD_COST = (100, 101, 102, 102, 105, 108, 114, 121, 129, 142, 158, 176, 194, 214)  # by letters; longer: 16 a letter
_RUN_COST = {2: (25, 72), 3: (30, 62), 4: (20, 56), 5: (40, 21)}  # Han, kana, Hangul, other scripts: a run, a letter


def estimate(text: str) -> int:
    """About how many tokens a text has, for usage that the backend did not report: a fair guess, not a bound.

    The text is cut into pieces as o200k, OpenAI's tokenizer, cuts it, and each piece costs what such pieces cost there
    on average, measured over prose, manuals, messages and code: within 10 % for some lines of English, code, Western
    languages, Russian, Chinese, Japanese and Korean; less sure elsewhere. About 0.4 ms for a thousand tokens.
    """
    return -(-sum(map(_piece_cost, _PIECE.finditer(text))) // 100)


def _piece_cost(piece: re.Match[str]) -> int:
    """Hundredths of a token."""
    kind = piece.lastindex
    if kind == 1:
        word = piece[1]
        length = len(word)
        cost = _WORD_COST[length] if length < len(_WORD_COST) else 16 * length
        return cost if word.isascii() else cost + (60 if max(word) > "\u00ff" else 20)
    if kind is None or kind == 6:
        return 100
    if kind == 7:
        marks = piece[7]
        return 100 + 10 * (len(marks) > 2) if marks.isascii() else 100 * len(marks.strip())
    run, letter = _RUN_COST[kind]
    return max(100, run + letter * len(piece[kind]))
