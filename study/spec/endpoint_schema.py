"""The part of the study file that is about endpoints: see `study.spec.schema`."""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from core.strict_yaml import STRICT, Count, Rate

Price = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(config=STRICT, frozen=True)
class Request:
    """How requests to an endpoint are written. Providers differ in the parameters that they take.

    What changes answers is part of a cell's identity: `temperature` and `extra_body`.
    """

    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the limit on completion tokens."""
    seed: bool = True
    """Whether the sampling seed is sent."""
    temperature: Literal["send"] | None = "send"
    """`null`: the temperature is not sent, and the endpoint uses its own."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """More keys of each request, such as {reasoning_effort: none}."""


@dataclass(config=STRICT, frozen=True)
class Endpoint:
    """A server that speaks the OpenAI API: the document writer or the judge.

    Only the model, and of `request` what changes answers, are part of a cell's identity: address,
    key, limits and prices are not.
    """

    served_by: Literal["dummy", "url", "vllm"] = "url"
    """`url`: a server at `base_url`. `vllm`: a vLLM server that each job starts for itself on the
    loopback interface. `dummy`: the kit's deterministic rules, served on the loopback interface;
    needs no key and no GPU."""
    base_url: str | None = None
    """Address that ends where `/chat/completions` begins, such as https://api.example.org/v1."""
    model: str | None = None
    """Model name as the server knows it."""
    preset: (
        Literal[
            "openai",
            "openai-reasoning",
            "gemini",
            "xai",
            "anthropic",
            "vllm",
            "llamacpp",
            "ollama",
        ]
        | None
    ) = None
    """`url`: a provider or server (docs/endpoints.md). It gives `base_url`, `key_env` and `request`
    where these are left out."""
    request: Request = Request()
    """How requests are written, such as {max_tokens_key: max_completion_tokens}."""
    key_env: str | None = None
    """NAME of the environment variable that holds the API key. The key itself is never written to
    a file."""
    path: str | None = None
    """`vllm`: folder of a Hugging Face model."""
    options: dict[str, Any] = Field(default_factory=dict)
    """`vllm`: options of `vllm serve`, written with underscores, such as {tensor_parallel_size:
    4}."""
    requests_per_minute: Rate | None = None
    """Rate limit, shared by all jobs of the study. Without it there is no limit."""
    tokens_per_minute: Rate | None = None
    """Rate limit on prompt and completion tokens together, shared by all jobs of the study."""
    prompt_price: Price = 0.0
    """Price per million prompt tokens."""
    completion_price: Price = 0.0
    """Price per million completion tokens."""
    batch: bool = False
    """`url`: whether requests are sent as batches (`/files` and `/batches` of OpenAI's API), whose
    answers come within 24 hours."""
    batch_discount: Share = 0.0
    """By which share of the prices a request in a batch is cheaper: 0.5 where it costs half."""
    batch_requests: Count = 50_000
    """Requests in one batch, at most."""
    terms: str | None = None
    """Terms of use of what the model writes, in a sentence or as an address. They are shown on the
    cards of corpora, and are part of no cell's identity."""
    timeout: Rate = 120.0
    """Seconds after which a request without a response is sent again."""
