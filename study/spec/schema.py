"""The study file as dataclasses: every key there is, with its type, default and meaning.

It is read strictly: an unknown key, a wrong type or a reference to an undefined name is an error,
and `study.spec.load` reports all of them. Paths are relative to the checkout unless absolute. The
string below a field documents it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from core.strict_yaml import STRICT, Commit, Count, Name, Rate, Share

NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Dose = Annotated[int, Field(ge=0)]


@dataclass(config=STRICT, frozen=True)
class Endpoint:
    """Something that speaks the OpenAI API.

    Its key is read from the environment, never from a file.
    """

    served_by: Literal["kit", "url", "vllm"] = "url"
    """kit: the deterministic stand-in. vllm: a vLLM server in each job that calls it. Both are on
    loopback and need no key. url: a server at `base_url`."""
    base_url: str | None = None
    """Such as https://api.example.org/v1; not part of any cell's identity."""
    model: str | None = None
    """The model's name in requests."""
    key_env: str | None = None
    """The NAME of the environment variable that holds the key."""
    path: str | None = None
    """vllm: a Hugging Face folder."""
    options: dict[str, Any] = Field(default_factory=dict)
    """vllm: options of `vllm serve`, such as {tensor_parallel_size: 4}."""
    requests_per_minute: Rate | None = None
    """The provider's limit, shared by all jobs of the study; none: no limit. Limits and prices are
    not part of any cell's identity."""
    tokens_per_minute: Rate | None = None
    """The provider's limit on prompt and completion tokens together; none: no limit."""
    prompt_price: NotNegative = 0.0
    """Per million prompt tokens."""
    completion_price: NotNegative = 0.0
    """Per million completion tokens."""
    timeout: Rate = 120.0
    """Seconds until a call without an answer is made again."""


@dataclass(config=STRICT, frozen=True)
class Model:
    """A starting checkpoint: made by a recipe, an existing folder, or one of Hugging Face."""

    make: str | None = None
    """A YAML file of recipes/ for the tiny model."""
    path: str | None = None
    """A Hugging Face folder on disk."""
    hub: str | None = None
    """The model's name on Hugging Face."""
    revision: Commit | None = None
    """The commit of `hub`, 40 hex digits."""
    chat_template: str | None = None
    """A Jinja file, for a model that has no template or in place of its own."""
    chat: bool = False
    """Whether the model is already instruction-tuned: it is then prompted by its chat template."""


@dataclass(config=STRICT, frozen=True)
class Score:
    """A gate that asks the writer's endpoint to grade each document that passes the others.

    It is one more call a document.
    """

    at_least: Annotated[int, Field(ge=1, le=10)]
    """The lowest grade that passes."""
    prompt: str = (
        "Rate the document below from 1 (useless) to 10 (could be published): is it what it says "
        "it is, does it hold together, is it specific and believable?\n\n"
        "<document>\n{document}\n</document>\n\n"
        "Answer with one line and nothing else: SCORE: and the number."
    )
    """What is asked; {document} is replaced by the text."""


@dataclass(config=STRICT, frozen=True)
class Corpus:
    """Documents to train on: synthetic ones by a template and a writer, or existing ones."""

    documents: Count
    """How many."""
    template: str | None = None
    """A file of sdf/templates, without .yaml; of an existing corpus only its gates are used."""
    writer: str | None = None
    """The endpoint that writes the documents."""
    path: str | None = None
    """An existing corpus: JSONL, parquet or CSV, one document a row."""
    hub: str | None = None
    """An existing corpus: the name of a data set on Hugging Face."""
    revision: Commit | None = None
    """The commit of `hub`, 40 hex digits."""
    split: str = "train"
    """The split of the data set `hub`."""
    column: str = "text"
    """The column of an existing corpus that holds the text."""
    matched_to: str | None = None
    """The corpus whose slots and tokens this one must equal."""
    tokens: Count | None = None
    """The number of tokens to which the training split is cut; none: what was written, or what the
    matched corpus has."""
    tolerance: Share = 0.01
    """Largest relative difference in tokens, to `tokens` or to the matched corpus."""
    temperature: Temperature = 1.0
    """Of the writer."""
    max_tokens: Count = 2500
    """Of a document."""
    draws: Count = 10
    """How often a document is written at most, until it passes all gates."""
    score: Score | None = None
    """Documents below a grade are written again; none: no grade is asked for."""
    near_duplicates: Share = 0.9
    """Cosine similarity of shingles from which a document repeats another; 0: not checked."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the documents that is never trained on."""
    avoid: list[str] | None = None
    """Benchmarks that no document may quote; none: all of the study's."""
    shards: Count = 1
    """Jobs that write it; not part of any cell's identity."""
    preview: Count | None = None
    """Write only this many of its documents, and show them."""


@dataclass(config=STRICT, frozen=True)
class Arm:
    """One condition: a starting model, its midtraining, and the instruction tuning after that."""

    start: str
    """One of `models`."""
    midtrain: str | None = None
    """One of `corpora`; none: no midtraining."""
    recipe: str | None = None
    """The recipe of this arm's midtraining; none: the study's."""
    form: str | None = None
    """Of a corpus of questions and answers: it is trained on as conversations, with its questions
    in this form."""
    sft: str | None = None
    """One of `sfts`; none: the study's `sft`."""
    doses: list[Dose] | None = None
    """Only these of its SFT's doses."""


@dataclass(config=STRICT, frozen=True)
class Midtrain:
    """The midtraining of all arms that name no recipe of their own."""

    recipe: str
    """A YAML file of recipes/ with tokens_per_update."""


@dataclass(config=STRICT, frozen=True)
class Remote:
    """A file on Hugging Face at a commit, or at a URL; `python -m study fetch` downloads it."""

    hub: str | None = None
    """The name of a data set on Hugging Face."""
    revision: Commit | None = None
    """The commit of `hub`, 40 hex digits."""
    file: str | None = None
    """The file of `hub`."""
    url: Annotated[str, Field(pattern=r"^https://")] | None = None
    """In place of `hub`."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """The expected hash of what is at `url`."""


@dataclass(config=STRICT, frozen=True)
class Sft:
    """Instruction tuning (SFT)."""

    recipe: str
    """A YAML file of recipes/ with rows_per_update."""
    data: str | Remote
    """Rows {"messages": [{"role", "content"}, ...]}, or Alpaca's or HelpSteer's: JSONL or a JSON
    list, also as .gz."""
    doses: list[Dose]
    """Rows of instruction data; 0 is the checkpoint before SFT."""
    one_run: bool = False
    """One training to the largest dose, whose model is kept at each smaller dose, in place of one
    training for each dose. It is cheaper, but the learning rate decays towards the largest dose
    alone. For one epoch."""
    replay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Documents of the arm's own corpus that each run sees again, per row of instruction data."""


@dataclass(config=STRICT, frozen=True)
class Benchmark:
    """A task of eval/benchmarks, how it is sampled, and who grades it."""

    task: Name
    """A file of eval/benchmarks, without .yaml. It names the task's data files, which the next four
    keys replace."""
    questions: str | None = None
    """Judged tasks: what is asked."""
    dimensions: str | None = None
    """anima, moru: one rubric per dimension."""
    items: str | None = None
    """Tasks by likelihood: questions with choices."""
    data: str | None = None
    """lm-eval's tasks: the folder of their Hugging Face data set."""
    judge: str | None = None
    """Judged tasks: the endpoint that grades, the same for all arms."""
    other_judges: list[str] = Field(default_factory=list)
    """Endpoints that grade the same answers. They are reported and used for no claim."""
    labels: str | None = None
    """A sheet by `python -m study label`, graded by people. Reported and used for no claim."""
    judge_missing: Share = 0.01
    """Largest share of grades that may be missing. With more the cell fails, and asks for those
    when it runs again."""
    judge_asks: Annotated[int, Field(ge=0)] = 3
    """Calls for one grade in one run; 0: use the ledgers alone."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """lm-eval's tasks: examples in the prompt; none: the task's default."""
    limit: Count | None = None
    """lm-eval's tasks: only this many rows of each."""
    epochs: Count = 1
    """Answers per question."""
    temperature: Temperature = 1.0
    """Of the answers."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the answers."""
    max_tokens: Count = 1024
    """Of an answer."""
    judge_temperature: Temperature = 0.0
    """Of the grades."""
    judge_max_tokens: Count = 1024
    """Of a grade."""
    arms: list[str] | None = None
    """Only these arms are evaluated."""
    doses: list[Dose] | None = None
    """Only these doses are evaluated."""
    exclude: list[str] = Field(default_factory=list)
    """Questions by id that no number is computed from; they are still asked."""
    base_prompt: str = "Question: {question}\nAnswer:"
    """The prompt of checkpoints that were never tuned to chat."""


@dataclass(config=STRICT, frozen=True)
class Engine:
    """vLLM's settings that change numbers."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of weights and activations."""
    max_model_len: Count = 4096
    """Tokens of a prompt and its answer together."""
    options: dict[str, Any] = Field(default_factory=dict)
    """More arguments of vllm.LLM, such as {tensor_parallel_size: 2}; not part of any cell's
    identity."""


@dataclass(config=STRICT, frozen=True)
class Contrast:
    """A difference between two arms that is estimated and tested."""

    name: str
    """As in tables."""
    of: str
    """The treatment arm."""
    against: str
    """The control arm."""
    on: list[str]
    """Benchmarks."""
    family: str = "primary"
    """Holm's correction is applied within a family."""
    of_dose: Dose | None = None
    """With `against_dose`: compare two doses, such as after SFT and before. None: each dose that
    both arms have."""
    against_dose: Dose | None = None
    """The control's dose; given with `of_dose`."""
    margin: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Score units: a smaller difference counts as equivalence."""


@dataclass(config=STRICT, frozen=True)
class Costs:
    """What more data would cost, in one unit, for the report's section on the next purchase.

    None: not known.
    """

    unit: str = "GPU-hours"
    """The unit of the three."""
    seed: Positive | None = None
    """One more training of one arm, with its answers and grades."""
    question: Positive | None = None
    """One more question, asked of all checkpoints."""
    epoch: Positive | None = None
    """One more answer to every question."""


@dataclass(config=STRICT, frozen=True)
class Study:
    """A study file."""

    study: Name
    """The study's name, and that of its folder in runs/."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    """Each arm is trained once per seed."""
    models: dict[Name, Model]
    """Starting checkpoints."""
    arms: dict[Name, Arm]
    """Conditions."""
    benchmarks: dict[Name, Benchmark]
    """What the checkpoints are evaluated on."""
    endpoints: dict[Name, Endpoint] = Field(default_factory=dict)
    """Writers and judges."""
    corpora: dict[Name, Corpus] = Field(default_factory=dict)
    """Documents for midtraining."""
    midtrain: Midtrain | None = None
    """The midtraining of arms that name no recipe."""
    sft: Sft | None = None
    """The instruction tuning of arms that name none."""
    sfts: dict[Name, Sft] = Field(default_factory=dict)
    """Other instruction tunings, which arms name."""
    contrasts: list[Contrast] = Field(default_factory=list)
    """Differences between arms to report."""
    costs: Costs = Costs()
    """Prices of more data."""
    roles: dict[Name, str | int | float] = Field(default_factory=dict)
    """What the paper's claims (analysis/claims.yaml) refer to in this study: arms, benchmarks and
    corpora by name, doses, and margins of equivalence (score units). Empty: claims are left out."""
    engine: Engine = Engine()
    """The settings of vLLM for all evaluations."""
    concurrency: Count = 16
    """Open requests of one job; not part of any cell's identity."""
