"""The study file as dataclasses: every key there is, with its type, default and meaning.

Read strictly: an unknown key, a wrong type or a name nobody defined is an error (`study.spec.load` reports all).
Paths are relative to the checkout unless absolute.
"""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from core.strict_yaml import STRICT, Commit, Count, Name, Rate, Share


@dataclass(config=STRICT, frozen=True)
class Endpoint:
    """Something that speaks the OpenAI API. Its key is read from the environment, never from a file."""

    # kit: the deterministic stand-in. vllm: a vLLM server in each job that calls it. Both on loopback, without a key.
    served_by: Literal["kit", "url", "vllm"] = "url"
    base_url: str | None = (
        None  # such as https://api.example.org/v1; not part of any cell's identity
    )
    model: str | None = None
    key_env: str | None = None  # the NAME of the environment variable that holds the key
    path: str | None = None  # vllm: a Hugging Face folder
    options: dict[str, Any] = Field(
        default_factory=dict
    )  # of `vllm serve`, such as {tensor_parallel_size: 4}
    # Limits and prices, as the provider states them; no part of any cell's identity. None: no limit, no price.
    requests_per_minute: Rate | None = None  # shared by all jobs of the study
    tokens_per_minute: Rate | None = None
    prompt_price: Annotated[float, Field(ge=0)] = 0.0  # per million tokens
    completion_price: Annotated[float, Field(ge=0)] = 0.0
    timeout: Rate = 120.0  # seconds until a call without an answer is made again


@dataclass(config=STRICT, frozen=True)
class Model:
    """A starting checkpoint: made by a recipe of the kit, an existing Hugging Face folder, or fetched from there."""

    make: str | None = None  # a YAML file of recipes/ for the tiny model
    path: str | None = None
    hub: str | None = None  # on Hugging Face, by its name ...
    revision: Commit | None = None  # ... at this commit
    chat_template: str | None = (
        None  # a Jinja file for a model that has none, or in place of its own
    )
    chat: bool = False  # true where the model is instruction-tuned already: it is then prompted by its chat template


@dataclass(config=STRICT, frozen=True)
class Score:
    """A gate that asks the writer's endpoint for a grade of each document that passes the others: one more call."""

    at_least: Annotated[int, Field(ge=1, le=10)]
    prompt: str = (
        "Rate the document below from 1 (useless) to 10 (could be published): is it what it says it is, does it hold "
        "together, is it specific and believable?\n\n<document>\n{document}\n</document>\n\n"
        "Answer with one line and nothing else: SCORE: and the number."
    )


@dataclass(config=STRICT, frozen=True)
class Corpus:
    """Documents to train on: synthetic ones by a template and a writer, or existing ones."""

    documents: Count
    template: str | None = (
        None  # a file of sdf/templates, without .yaml; of an existing corpus only its gates are used
    )
    writer: str | None = None
    path: str | None = None  # existing: JSONL, parquet or CSV, one document a row
    hub: str | None = None  # existing: a data set of Hugging Face, by its name ...
    revision: Commit | None = None  # ... at this commit
    split: str = "train"
    column: str = "text"  # of an existing corpus: where the text is
    matched_to: str | None = None  # the corpus whose slots and tokens this one must equal
    tokens: Count | None = (
        None  # cut what is trained on to so many; none: what was written, or the matched corpus has
    )
    tolerance: Share = (
        0.01  # largest relative difference in tokens, to `tokens` or to the matched corpus
    )
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    max_tokens: Count = 2500
    draws: Count = 10  # times that a rejected document is written again, at most
    score: Score | None = None  # written again below a grade; none: not asked for
    near_duplicates: Share = (
        0.9  # cosine of shingles from which a document repeats another; 0: not looked for
    )
    held_out: Annotated[float, Field(ge=0, lt=1)] = (
        0.0  # share of the documents that is never trained on
    )
    avoid: list[str] | None = (
        None  # benchmarks that no document may quote; none: all of the study's
    )
    shards: Count = 1  # jobs that write it; not part of any cell's identity
    preview: Count | None = None  # write only so many of its documents, and show them


@dataclass(config=STRICT, frozen=True)
class Arm:
    """One condition: a starting model, what it is midtrained on, and the instruction tuning after that."""

    start: str
    midtrain: str | None = None  # a corpus
    recipe: str | None = None  # of this arm's midtraining; none: the study's
    # Of a corpus of questions and answers: trained on as conversations, with its questions in this form.
    form: str | None = None
    sft: str | None = None  # one of `sfts`; none: the study's `sft`
    doses: list[Annotated[int, Field(ge=0)]] | None = None  # only these of its SFT's doses


@dataclass(config=STRICT, frozen=True)
class Midtrain:
    recipe: str


@dataclass(config=STRICT, frozen=True)
class Remote:
    """A file on Hugging Face at a commit, or at a URL; `python -m study fetch` brings it."""

    hub: str | None = None
    revision: Commit | None = None
    file: str | None = None
    url: Annotated[str, Field(pattern=r"^https://")] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


@dataclass(config=STRICT, frozen=True)
class Sft:
    recipe: str
    # Rows {"messages": [{"role", "content"}, ...]}, Alpaca's or HelpSteer's: JSONL, a JSON list, either as .gz too.
    data: str | Remote
    doses: list[
        Annotated[int, Field(ge=0)]
    ]  # rows of instruction data; 0 is the checkpoint before SFT
    # One training to the largest dose, kept at the others as it passes them, in place of one for each: cheaper, but its
    # learning rate falls towards the largest dose alone. For one epoch.
    one_run: bool = False
    # Documents of the arm's own corpus that each run sees again, per row of instruction data: to keep what they taught.
    replay: Annotated[float, Field(gt=0, le=1)] | None = None


@dataclass(config=STRICT, frozen=True)
class Benchmark:
    task: Name  # a file of eval/benchmarks, which says where its data comes from; your own instead, if you name it:
    questions: str | None = None  # judged tasks: what is asked
    dimensions: str | None = None  # anima, moru: one rubric per dimension
    items: str | None = None  # tasks by likelihood: questions with choices
    data: str | None = None  # lm-eval's tasks: the folder of their Hugging Face data set
    judge: str | None = None  # judged tasks: the endpoint that grades, the same for all arms
    other_judges: list[str] = Field(
        default_factory=list
    )  # grade the same answers; reported, they decide nothing
    labels: str | None = (
        None  # a sheet that `python -m study label` wrote, graded by people; reported, decides nothing
    )
    judge_missing: Share = (
        0.01  # of the grades; with more missing the cell fails, and asks for those when run again
    )
    judge_asks: Annotated[int, Field(ge=0)] = (
        3  # for one grade in one run; 0: only what the ledgers hold
    )
    num_fewshot: Annotated[int, Field(ge=0)] | None = (
        None  # lm-eval's tasks: examples in the prompt; none: as usual
    )
    limit: Count | None = None  # lm-eval's tasks: only so many rows of each
    epochs: Count = 1  # answers per question
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Count = 1024
    judge_temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    judge_max_tokens: Count = 1024
    arms: list[str] | None = None  # only these
    doses: list[Annotated[int, Field(ge=0)]] | None = None  # only at these
    exclude: list[str] = Field(
        default_factory=list
    )  # questions by id that no number rests on; they are still asked
    base_prompt: str = (
        "Question: {question}\nAnswer:"  # for checkpoints that were never tuned to chat
    )


@dataclass(config=STRICT, frozen=True)
class Engine:
    """vLLM's settings that change numbers."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_model_len: Count = 4096
    # More arguments of vllm.LLM, such as {tensor_parallel_size: 2}; no part of any cell's identity.
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(config=STRICT, frozen=True)
class Contrast:
    name: str
    of: str
    against: str
    on: list[str]
    family: str = "primary"  # Holm's correction runs within a family
    # Both, to compare two doses, such as after SFT and before; none: each dose that both arms have.
    of_dose: Annotated[int, Field(ge=0)] | None = None
    against_dose: Annotated[int, Field(ge=0)] | None = None
    margin: Annotated[float, Field(gt=0, lt=1)] | None = (
        None  # score units: a smaller difference would not matter
    )


@dataclass(config=STRICT, frozen=True)
class Costs:
    """What more data would cost, in one unit, for the report's "what to buy next"; None: not known."""

    unit: str = "GPU-hours"
    seed: Annotated[float, Field(gt=0)] | None = (
        None  # one more training of one arm, with its answers and grades
    )
    question: Annotated[float, Field(gt=0)] | None = None  # one more, asked of all checkpoints
    epoch: Annotated[float, Field(gt=0)] | None = None  # one more answer to every question


@dataclass(config=STRICT, frozen=True)
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
    sfts: dict[Name, Sft] = Field(default_factory=dict)  # others, which arms name
    contrasts: list[Contrast] = Field(default_factory=list)
    costs: Costs = Costs()
    # What the paper's claims (analysis/claims.yaml) speak of, in this study: arms, benchmarks, corpora by name, doses,
    # and margins of equivalence (score units). None: the claims are left out.
    roles: dict[Name, str | int | float] = Field(default_factory=dict)
    engine: Engine = Engine()
    concurrency: Count = 16  # open requests of one job; not part of any cell's identity
