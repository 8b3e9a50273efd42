"""The study file as dataclasses: every key there is, with its type, default and meaning.

Read strictly: an unknown key, a wrong type or a name nobody defined is an error (`study.load` reports all of them).
Paths are relative to the checkout unless absolute.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$", max_length=40)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(config=_STRICT, frozen=True)
class Endpoint:
    """Something that speaks the OpenAI API. Its key is read from the environment, never from a file."""

    served_by: Literal["kit", "url"] = "url"  # kit: the deterministic stand-in, on loopback, no key needed
    base_url: str | None = None  # such as https://api.example.org/v1; not part of any cell's identity
    model: str | None = None
    key_env: str | None = None  # the NAME of the environment variable that holds the key


@dataclass(config=_STRICT, frozen=True)
class Model:
    """A starting checkpoint: made by a recipe of the kit, or an existing Hugging Face folder."""

    make: str | None = None  # a YAML file of recipes/ for the tiny model
    path: str | None = None
    chat: bool = False  # true where the model is instruction-tuned already: it is then prompted by its chat template


@dataclass(config=_STRICT, frozen=True)
class Corpus:
    """Synthetic documents: one template, one writer."""

    template: str  # a file of sdf/templates, without .yaml
    documents: Count
    writer: str
    matched_to: str | None = None  # the corpus whose slots and length this one must equal
    tolerance: Share = 0.05  # largest relative difference in words to the matched corpus
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    max_tokens: Count = 2500


@dataclass(config=_STRICT, frozen=True)
class Arm:
    start: str
    midtrain: str | None = None


@dataclass(config=_STRICT, frozen=True)
class Midtrain:
    recipe: str


@dataclass(config=_STRICT, frozen=True)
class Sft:
    recipe: str
    data: str  # JSONL of {"messages": [{"role", "content"}, ...]}
    doses: list[Annotated[int, Field(ge=0)]]  # rows of instruction data; 0 is the checkpoint before SFT


@dataclass(config=_STRICT, frozen=True)
class Benchmark:
    task: Literal["anima", "concern_for_animals"]
    questions: str | None = None  # anima: JSONL in ANIMA's schema
    dimensions: str | None = None  # anima: JSONL with one rubric per dimension
    items: str | None = None  # concern_for_animals: JSONL of two-choice items
    judge: str | None = None  # anima: the endpoint that grades, the same for all arms
    epochs: Count = 1  # answers per question
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Count = 1024
    judge_temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    judge_max_tokens: Count = 1024
    base_prompt: str = "Question: {question}\nAnswer:"  # for checkpoints that were never tuned to chat


@dataclass(config=_STRICT, frozen=True)
class Engine:
    """vLLM's settings that change numbers."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_model_len: Count = 4096


@dataclass(config=_STRICT, frozen=True)
class Contrast:
    name: str
    of: str
    against: str
    on: list[str]
    family: str = "primary"  # Holm's correction runs within a family


@dataclass(config=_STRICT, frozen=True)
class Study:
    study: Name
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    models: dict[Name, Model]
    arms: dict[Name, Arm]
    benchmarks: dict[Name, Benchmark]
    endpoints: dict[Name, Endpoint] = Field(default_factory=dict)
    corpora: dict[Name, Corpus] = Field(default_factory=dict)
    midtrain: Midtrain | None = None
    sft: Sft | None = None
    contrasts: list[Contrast] = Field(default_factory=list)
    engine: Engine = Engine()
    concurrency: Count = 16  # open requests per endpoint; not part of any cell's identity


@dataclass(config=_STRICT, frozen=True)
class Training:
    """A training recipe (recipes/*.yaml)."""

    seq_len: Count
    epochs: Count
    lr: Annotated[float, Field(gt=0)]
    tokens_per_update: Count | None = None  # midtraining: packed rows of seq_len tokens
    rows_per_update: Count | None = None  # SFT: one conversation a row
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_updates: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(default_factory=lambda: [0.9, 0.95])
    clip_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    dtype: Literal["fp32"] = "fp32"
    # How, not what: they change no result beyond rounding, and are no part of a cell's identity (plan.WAYS).
    rows_per_rank: Count | None = None  # rows at once on each rank; none: its whole share of an update
    save_minutes: Annotated[float, Field(ge=0)] = 30  # between step checkpoints; 0: one after every update


@dataclass(config=_STRICT, frozen=True)
class TinyLlama:
    """A toy Llama-3.1 made from scratch (recipes/tiny_llama.yaml)."""

    vocab_size: Count
    dim: Count
    layers: Count
    heads: Count
    kv_heads: Count
    ffn_dim: Count
    max_seq_len: Count
    tokens: Count  # pretraining length
    pretrain: Training
