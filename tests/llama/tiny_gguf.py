"""Writes a tiny llama model with random weights: `python tiny_gguf.py FILE`, with `gguf` installed.

A llama.cpp server that loads it is a real backend that answers at once, with gibberish. Only the words below can win a
greedy choice (`temperature: 0`), so every answer is text and as long as it may be.
"""

import sys
from typing import Any

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, HIDDEN, CONTEXT = 64, 2, 4, 128, 4096
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
WORDS = ["hello", " the", " gateway", " model", " trust", " a", " is", " and", " of", " to", " in"]
WORDS += [" calm", " harbour", " ship", "."]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def write(path: str) -> None:
    """Write the model to `path`: 0.5 MB, the same bytes each time."""
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer)
    for name, tensor in _tensors(np.random.default_rng(7)).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any) -> None:
    writer.add_name("tiny-random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_file_type(0)
    vocabulary = [*SPECIAL, *BYTES, *(word.replace(" ", "\u2581") for word in WORDS)]
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token.encode() for token in vocabulary])
    writer.add_token_scores([0.0] * len(SPECIAL + BYTES) + [-float(rank) for rank in range(len(WORDS))])
    writer.add_token_types([2, 3, 3] + [6] * len(BYTES) + [1] * len(WORDS))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)


def _tensors(rng: Any) -> dict[str, Any]:
    def random(*shape: int) -> Any:
        return (rng.standard_normal(shape) * 0.05).astype(np.float32)

    vocabulary = len(SPECIAL + BYTES + WORDS)
    output = random(vocabulary, WIDTH)
    output[: -len(WORDS)] = 0.0
    tensors = {
        "token_embd.weight": random(vocabulary, WIDTH),
        "output_norm.weight": np.ones(WIDTH, np.float32),
        "output.weight": output,
    }
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"{block}.{name}.weight"] = random(WIDTH, WIDTH)
        tensors[f"{block}.ffn_gate.weight"] = random(HIDDEN, WIDTH)
        tensors[f"{block}.ffn_up.weight"] = random(HIDDEN, WIDTH)
        tensors[f"{block}.ffn_down.weight"] = random(WIDTH, HIDDEN)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"{block}.{name}.weight"] = np.ones(WIDTH, np.float32)
    return tensors


if __name__ == "__main__":
    write(sys.argv[1])
    print("written")
