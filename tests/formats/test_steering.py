"""What a client must not say to a backend whose requests are translated."""

from typing import Any

import pytest

from gateway.formats.steering import remote_media, steers
from gateway.upstream.parameters import OPENAI


@pytest.mark.parametrize(
    "name",
    [
        *("api_base", "base_url", "api_key", "api_version", "custom_llm_provider", "extra_headers", "extra_body"),
        *("fallbacks", "mock_response", "aws_secret_access_key", "vertex_credentials", "azure_ad_token", "timeout"),
        *("litellm_credential_name", "proxy_server_request", "model_list", "drop_params", "headers", "_router_weights"),
    ],
)
def test_names_that_choose_a_destination_or_a_credential_are_known(name: str) -> None:
    """Each was a hole in some gateway."""
    assert steers(name)


def test_none_of_openai_s_own_parameters_is_taken_for_one() -> None:
    """Nor what providers have beside them."""
    usual = {"model", "messages", "stream", "stream_options", "top_k", "thinking", "safety_settings", "guided_json"}
    assert [name for name in OPENAI | usual if steers(name)] == []


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize(
    "part",
    [
        image("http://10.0.0.1/x.png"),
        image("https://example.com/x.png"),
        image(" HTTP://example.com/x.png"),
        image("gs://bucket/x.png"),
        image("file:///etc/passwd"),
        {"type": "image_url", "image_url": "http://example.com/x.png"},
        {"type": "file", "file": {"file_id": "http://example.com/x.pdf"}},
        {"type": "file", "file": {"file_data": "https://example.com/x.pdf"}},
        {"type": "video_url", "video_url": {"url": "http://example.com/x.mp4"}},
        {"type": "input_audio", "input_audio": {"data": "http://example.com", "format": "wav"}},
        {"type": "tool_result", "content": [image("http://example.com/x.png")]},
    ],
)
def test_whatever_would_have_to_be_fetched_is_found(part: dict[str, Any]) -> None:
    """Wherever it stands in a message, whatever its scheme."""
    messages = [{"role": "user", "content": "hi"}, {"role": "tool", "content": [{"type": "text", "text": "x"}, part]}]
    assert str(remote_media(messages, https_images=False)).startswith("messages[1].content[1].")


@pytest.mark.parametrize(
    "part",
    [
        image("data:image/png;base64,AAAA"),
        {"type": "text", "text": "see http://example.com"},
        {"type": "file", "file": {"file_id": "file-abc", "filename": "c:/x.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "5m"}},
    ],
)
def test_what_comes_as_data_and_what_is_only_text_may_pass(part: dict[str, Any]) -> None:
    """A text may name any URL."""
    assert remote_media([{"role": "user", "content": [part]}], https_images=False) is None


def test_a_provider_that_fetches_images_itself_may_get_their_https_urls() -> None:
    """But none without TLS, and nothing but images."""
    for url, free in (("https://example.com/x", True), ("http://example.com/x", False)):
        assert (remote_media([{"content": [image(url)]}], https_images=True) is None) is free
    file = {"type": "file", "file": {"file_data": "https://example.com/x.pdf"}}
    assert remote_media([{"content": [file]}], https_images=True) == "messages[0].content[0].file.file_data"
