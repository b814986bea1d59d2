"""Which of litellm's providers may be named in a policy, and which may not, each with the reason."""

# Those with a dialect of their own.
_SPOKEN = """
anthropic azure bedrock bytez codestral cohere cohere_chat datarobot fal_ai gemini huggingface langflow langgraph
mistral nlp_cloud oci ollama ollama_chat ragflow sagemaker_chat sagemaker_nova snowflake vertex_ai vertex_ai_beta
watsonx
"""
# Those whose answers are OpenAI's, and whose litellm config asks nobody anything.
_COMPATIBLE = """
ai21 ai21_chat aiohttp_openai amazon_nova azure_ai baseten bedrock_mantle cerebras clarifai cloudflare cometapi
compactifai custom custom_openai dashscope databricks deepinfra deepseek docker_model_runner edenai empower
featherless_ai fireworks_ai friendliai galadriel github gradient_ai groq heroku hosted_vllm hyperbolic inception
lambda_ai litellm_proxy llamafile lm_studio maritalk meta_llama minimax modelscope moonshot morph nadir nebius novita
nscale nvidia_nim oobabooga openai_like openrouter ovhcloud perplexity qwen_ai_platform qwencloud sail sambanova
tencent together_ai v0 vercel_ai_gateway vllm volcengine wandb xai zai
"""
# The same, of which litellm has no more than a line in a list; whether a model takes tools, it does not know.
_LISTED = """
abliteration aihubmix apertis assemblyai charity_engine chutes cognition cortecs crusoe darkbloom empiriolabs gmi
helicone libertai llamagate meta nano-gpt neosantara parasail pinstripes poe prism publicai reka sarvam scaleway scx-ai
synthetic tensormesh veniceai xiaomi_mimo
"""
LISTED = frozenset(_LISTED.split())
COMPATIBLE = frozenset(_COMPATIBLE.split()) | LISTED
TRANSLATED = frozenset(_SPOKEN.split()) | COMPATIBLE
# What needs no translation.
OWN = frozenset(("openai", "simulator"))

_POLLED = "it gives an id first, and the answer has to be asked for again and again"
_SIGN_IN = "it is signed in to by a person, with a browser, and litellm asks for that over the network"
_TEMPLATE = (
    "it takes one text, and litellm fetches the template that makes it from messages from Hugging Face; "
    "write a backend without `provider` for a server that has an OpenAI-compatible endpoint"
)
_TEXT = "it completes a text and has no chat; write a backend without `provider`, whose /v1/completions is passed on"
REFUSED = {
    "a2a": "it speaks to agents, whose tasks have to be asked for until they end",
    "anthropic_text": "its models are gone; write `provider: anthropic`",
    "azure_text": _TEXT,
    "chatgpt": _SIGN_IN,
    "gdc": "it needs Google's own sign-in library, which asks for tokens over the network",
    "gigachat": "litellm asks for its tokens over the network, in the request",
    "github_copilot": _SIGN_IN,
    "petals": "litellm has no translation for it",
    "predibase": _TEMPLATE,
    "replicate": _POLLED,
    "sagemaker": f"{_TEMPLATE}, or `provider: sagemaker_chat`",
    "sap": "litellm asks for its tokens and deployments over the network, in the request",
    "text-completion-codestral": _TEXT,
    "text-completion-inception": _TEXT,
    "text-completion-openai": _TEXT,
    "triton": _TEMPLATE,
    "watsonx_text": f"{_TEMPLATE}, or `provider: watsonx`",
}
_NO_CHAT = """
a2a_agent aiml auto_router aws_polly aws_textract azure_speech black_forest_labs cursor deepgram dotprompt elevenlabs
humanloop infinity jina_ai langfuse lemonade litellm_agent manus milvus mongodb nvidia_riva pg_vector recraft reducto
runwayml s3_vectors soniox stability strands_decider topaz transcribe typesafe valkey voyage xinference
"""
NO_CHAT = frozenset(_NO_CHAT.split())


def why_refused(name: str) -> str | None:
    """Why a provider that litellm knows cannot be named; None for one that can be, or that litellm does not know."""
    if name in NO_CHAT:
        return "litellm has no chat format for it; write a backend without `provider` if it is OpenAI-compatible"
    return REFUSED.get(name)
