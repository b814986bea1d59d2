"""Counts a prompt with the model's own tokenizer, for a request that its length in bytes would keep from its limit.

A byte-level bound is four times what English takes. That is no matter far from a limit; near one it would refuse or
shorten what fits. The tokenizers are OpenAI's, from the files that litellm carries, and are loaded when first needed,
on a thread: half a second and 60 MB that most gateways never spend.
"""

import asyncio
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.formats.request import Request
from gateway.formats.tokens import upper_bound

if TYPE_CHECKING:
    from tiktoken import Encoding

SMALLEST = 512  # bytes of a request that is worth counting
_PER_MESSAGE = 8  # tokens of a chat template's marks around a message
_O200K = ("gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "chatgpt-4o", "o1", "o3", "o4")
_CL100K = ("gpt-4", "gpt-3.5", "text-embedding-3", "text-embedding-ada-002")
_FILES = {  # the names that tiktoken gives its files in a cache; without the file it would go to the network
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
}
_MEDIA = (b'"image', b'"input_image', b'"input_audio', b'"audio', b'"file', b'"input_file', b'"video', b'"document')


class Tokenizers:
    """The tokenizers that were needed so far."""

    def __init__(self) -> None:
        self._encodings: dict[str, Encoding] = {}
        self._loading = asyncio.Lock()

    async def bound(self, request: Request, model: str) -> int | None:
        """A sure upper bound of the input tokens of a text-only request to this model; None where nobody can count.

        `model` is the backend's own name. The JSON and the text in it are both counted, and the larger stands.
        """
        name = encoding_of(model)
        raw = request.raw
        if name is None or len(raw) < SMALLEST or any(mark in raw for mark in _MEDIA):
            return None
        beside = upper_bound(request.doc, len(raw), model) - len(raw)
        if beside > len(raw):
            return None  # something that only the backend can see
        encoding = await self._encoding(name)
        if encoding is None:
            return None
        messages = request.doc.get("messages") or request.doc.get("input") or ()
        texts = [raw.decode("utf-8", "replace"), request.text()]
        whole, text = await asyncio.to_thread(lambda: [len(encoding.encode_ordinary(one)) for one in texts])
        return max(whole, text + _PER_MESSAGE * len(messages)) + beside

    async def _encoding(self, name: str) -> "Encoding | None":
        if name not in self._encodings:
            async with self._loading:
                if name not in self._encodings:
                    found = await asyncio.to_thread(_load, name)
                    if found is None:
                        return None
                    self._encodings[name] = found
        return self._encodings[name]


def encoding_of(model: str) -> str | None:
    """The tokenizer that OpenAI documents for a model of this name; None for other makers' and unknown ones."""
    bare = model.rpartition("/")[2]
    if bare.startswith(_O200K):
        return "o200k_base"
    return "cl100k_base" if bare.startswith(_CL100K) else None


def _load(name: str) -> "Encoding | None":
    spec = find_spec("litellm")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        files = Path(folder) / "litellm_core_utils" / "tokenizers"
        if (files / _FILES[name]).is_file():
            before = os.environ.get("TIKTOKEN_CACHE_DIR")
            os.environ["TIKTOKEN_CACHE_DIR"] = str(files)
            try:
                import tiktoken  # noqa: PLC0415 - heavy, and only needed near a limit

                return tiktoken.get_encoding(name)
            finally:
                if before is None:
                    del os.environ["TIKTOKEN_CACHE_DIR"]
                else:
                    os.environ["TIKTOKEN_CACHE_DIR"] = before
    return None
