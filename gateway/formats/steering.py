"""What a client must not say to a backend whose requests are translated: where to go, as whom, and what to fetch.

Translating libraries take such fields for their own settings; each of them has been a hole somewhere.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Exact names, and beginnings, of what litellm reads as settings of its own. OpenAI has none of them in a body.
_WORDS = """
allow_client_keepalive_override allowed_model_region allowed_openai_params additional_drop_params
annotation_cost_per_page api_base api_key api_version arize_api_key assistant_continue_message async_call base_model
base_url bos_token bucket_name budget_duration cache cache_key caching caching_groups client client_id client_secret
client_side_timeout complete_response completion_call_id configurable_clientside_auth_params
context_window_fallback_dict cooldown_time credentials custom_llm_provider custom_prompt_dict data_residency
default_headers deployment_id disable_add_transform_inline_image_block drop_params enable_json_schema_validation
enable_prompt_caching enable_tag_filtering ensure_alternating_roles eos_token extra_body extra_headers extra_query
fallback_depth fallbacks fastest_response final_prompt_value force_timeout guardrails headers hf_model_name
initial_prompt_value input_cost_per_token itpm logger_fn log_client_error_tracebacks max_agentic_loops max_budget
max_fallbacks max_file_size_mb max_parallel_requests max_retries merge_reasoning_content_in_choices model_alias_map
model_config model_file_id_mapping model_info model_list no-log num_retries organization output_cost_per_token otpm
preset_cache_key prompt_environment prompt_id prompt_label prompt_variables prompt_version provider_affinity_header
provider_specific_header proxy_server_request quality_router_config region_name request_timeout retry_policy
retry_strategy rpm routing_strategy search_tool_name secret_fields shared_session silent_model ssl_verify
stream_chunk_size stream_response stream_timeout supports_system_message tag_regex tenant_id text_completion
tiered_pricing timeout tpm ttl turn_off_message_logging use_chat_completions_api use_client use_in_pass_through
use_litellm_proxy use_xai_oauth user_continue_message vector_store_id verbose watsonx_region_name
"""
_NAMES = frozenset(_WORDS.split())
_BEGINNINGS = (
    *(
        "_",
        "aws_",
        "azure_",
        "vertex_",
        "bedrock_",
        "sagemaker_",
        "watsonx_",
        "oci_",
        "gcs_",
        "s3_",
        "litellm_",
        "mock_",
    ),
    *("langfuse_", "langsmith_", "posthog_", "wandb_", "weave_", "valkey_", "milvus_", "humanloop_", "arize_", "dd_"),
    *(
        "anthropic_",
        "openai_",
        "auto_router_",
        "complexity_router_",
        "adaptive_router_",
        "quality_router_",
        "newrelic_",
    ),
    "signoz_",
)
_REMOTE = re.compile(r"\s*(?!data:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_HTTPS = re.compile(r"https://", re.IGNORECASE)
# Where a part of a message may name something to be fetched; texts may say what they like.
_TEXTS = frozenset(
    ("text", "thinking", "signature", "arguments", "name", "title", "context", "type", "detail", "format", "filename")
)
_UNREAD = frozenset(("role", "name", "tool_calls", "tool_call_id", "function_call", "refusal", "reasoning_content"))


def steers(name: str) -> bool:
    """Whether a field of a request's body would choose a destination, a credential, or how the gateway works."""
    return name in _NAMES or name.startswith(_BEGINNINGS)


def remote_media(messages: Any, *, https_images: bool) -> str | None:
    """The place of the first URL in the messages that somebody would have to fetch; None when there is none.

    `https_images` is for a provider that fetches the images of such URLs itself.
    """
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            continue
        for field, value in message.items():
            if field in _UNREAD or isinstance(value, str):
                continue
            for place, key, url in _strings(value, f"messages[{number}].{field}", ""):
                if _REMOTE.match(url) and not (https_images and key == "image_url" and _HTTPS.match(url)):
                    return place
    return None


def _strings(value: Any, place: str, key: str) -> Iterator[tuple[str, str, str]]:
    """Every string in a part that is not text, with its place and the name of what it belongs to."""
    if isinstance(value, str):
        yield place, key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in _TEXTS:
                yield from _strings(inner, f"{place}.{name}", key if name == "url" else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _strings(inner, f"{place}[{number}]", key)
