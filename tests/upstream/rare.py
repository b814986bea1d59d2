"""Providers that are asked in their own way: settings, a model, and an answer as their documentation shows it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.upstream.translators import AWS, HOST, PICTURE

OCI_KEY = rsa.generate_private_key(65537, 2048)
PEM = OCI_KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
OCI: Mapping[str, str] = {
    "oci_region": "us-chicago-1",
    "oci_user": "ocid1.user.oc1..u",
    "oci_fingerprint": "aa:bb",
    "oci_tenancy": "ocid1.tenancy.oc1..t",
    "oci_compartment_id": "ocid1.compartment.oc1..c",
    "oci_key": PEM,
}
SEEN = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": PICTURE}}]


def completion(text: str = "hello", **more: Any) -> dict[str, Any]:
    """A chat completion, as any OpenAI-compatible server answers."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    return {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]} | {
        "usage": usage,
        **more,
    }


@dataclass(frozen=True)
class Rare:
    """`answer` says `hello`, and costs 3 and 4 tokens where `counted`; `path` is where it is asked for."""

    settings: Mapping[str, Any]
    model: str
    path: str
    answer: Mapping[str, Any]
    counted: bool = True
    content: Any = "hi"
    fields: Mapping[str, Any] = field(default_factory=dict)


CLAUDE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 4},
}
# https://docs.oracle.com/en-us/iaas/api/#/en/generative-ai-inference/20231130/ChatResult/Chat
OCI_ANSWER = {
    "modelId": "meta.llama-3.3-70b-instruct",
    "modelVersion": "1.0.0",
    "chatResponse": {
        "apiFormat": "GENERIC",
        "timeCreated": "2025-01-01T00:00:00.000Z",
        "choices": [
            {
                "index": 0,
                "message": {"role": "ASSISTANT", "content": [{"type": "TEXT", "text": "hello"}]},
                "finishReason": "stop",
            }
        ],
        "usage": {"promptTokens": 3, "completionTokens": 4, "totalTokens": 7},
    },
}
COHERE_AT_OCI = {
    "modelId": "cohere.command-r-plus",
    "modelVersion": "1.7",
    "chatResponse": {
        "apiFormat": "COHERE",
        "text": "hello",
        "chatHistory": [{"role": "USER", "message": "hi"}, {"role": "CHATBOT", "message": "hello"}],
        "finishReason": "COMPLETE",
        "usage": {"promptTokens": 3, "completionTokens": 4, "totalTokens": 7},
    },
}
LANGFLOW = {"session_id": "s", "outputs": [{"outputs": [{"results": {"message": {"text": "hello"}}}]}]}
SAGEMAKER = {**AWS, "region": "us-east-1"}
WATSONX = {"region": "us-south", "project_id": "p-1", "auth": "token"}

SPECIAL: Mapping[str, Rare] = {
    "bytez": Rare(
        {},
        "openai-community/gpt2",
        "/models/v2/openai-community/gpt2",
        {"error": None, "output": {"role": "assistant", "content": [{"type": "text", "text": "hello"}]}},
        counted=False,
    ),
    "clarifai": Rare({}, "openai.chat.gpt-4o", "/chat/completions", completion()),
    "datarobot": Rare({}, "m", "/api/v2/genai/llmgw/chat/completions/", completion()),
    "fal_ai": Rare(
        {},
        "fal-ai/any-vlm",
        "/fal-ai/any-vlm",
        {"output": "hello", "reasoning": None, "usage_info": {"input_tokens": 3, "output_tokens": 4}},
        content=SEEN,
    ),
    "langflow": Rare({}, "flow-1", "/api/v1/run/flow-1", LANGFLOW, counted=False),
    "langgraph": Rare(
        {},
        "agent",
        "/runs/wait",
        {"messages": [{"type": "human", "content": "hi"}, {"type": "ai", "content": "hello"}]},
        counted=False,
    ),
    "nlp_cloud": Rare(
        {"base_url": f"{HOST}/v1/gpu"},
        "finetuned-llama-3-70b",
        "/v1/gpu/finetuned-llama-3-70b/generation",
        {"generated_text": "hello", "nb_generated_tokens": 4, "nb_input_tokens": 3},
    ),
    "oci": Rare({"options": OCI, "api_keys": ()}, "meta.llama-3.3-70b-instruct", "/20231130/actions/chat", OCI_ANSWER),
    "ragflow": Rare({}, "chat/c-1/m", "/api/v1/chats_openai/c-1/chat/completions", completion()),
    "sagemaker_chat": Rare(
        {"options": SAGEMAKER, "api_keys": ()}, "my-endpoint", "/endpoints/my-endpoint/invocations", completion()
    ),
    "sagemaker_nova": Rare(
        {"options": SAGEMAKER, "api_keys": ()}, "my-nova", "/endpoints/my-nova/invocations", completion()
    ),
    "snowflake": Rare(
        {"options": {"account_id": "org-acc"}}, "claude-sonnet-4-5", "/api/v2/cortex/v1/messages", CLAUDE
    ),
    "watsonx": Rare({"options": WATSONX}, "ibm/granite-3-8b-instruct", "/ml/v1/text/chat", completion(model_id="m")),
}
