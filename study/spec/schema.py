"""The study file as dataclasses: every key there is, with its type, default and meaning.

It is read strictly: an unknown key, a wrong type or a reference to an undefined name is an error,
and `study.spec.load` reports all of them. Paths are relative to the checkout unless absolute. The
string below a field documents it; docs/study-file.md is generated from them.
"""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from analysis.claims_file import CLAIMS
from core.model_folder.config import CHAT_DATE
from core.strict_yaml import STRICT, Commit, Count, Name, Share
from study.spec.endpoint_schema import Endpoint as Endpoint
from study.spec.endpoint_schema import Request as Request
from study.spec.rl_schema import Reward as Reward
from study.spec.rl_schema import Rl as Rl
from study.spec.steps import Dose, Doses
from study.spec.steps import Step as Step

Temperature = Annotated[float, Field(ge=0, le=2)]
# Of a claim: a name, a dose or a margin; or by the role of a dose the arm and dose [ARM, DOSE].
Role = str | int | float | dict[Name, list[str | int]]


@dataclass(config=STRICT, frozen=True)
class Model:
    """A start model: made by the kit, a Hugging Face folder, or a repository on the Hub. Exactly
    one of the three."""

    make: str | None = None
    """YAML file of recipes/ that describes the toy model."""
    path: str | None = None
    """Folder of a Hugging Face model (safetensors)."""
    hub: str | None = None
    """Repository on the Hugging Face Hub; needs `revision`."""
    revision: Commit | None = None
    """Commit of the repository, 40 hexadecimal digits."""
    chat_template: str | None = None
    """Jinja file with the chat template, for a model that has none or in place of its own. Part of
    the identity of the cells that read it: SFT, training on question variants, and chat prompts
    before any SFT."""
    tokenizer: Name | None = None
    """Other entry of `models` whose tokenizer and chat template are used in place of its own: for
    a repository that has none."""
    chat: bool = False
    """Whether the model is instruction-tuned. If so, it is prompted with its chat template before
    any SFT."""


@dataclass(config=STRICT, frozen=True)
class Embedder:
    """A model of sentence-transformers, as a folder or on the Hub. Exactly one of the two."""

    path: str | None = None
    """Folder of the model."""
    hub: str | None = None
    """Repository on the Hugging Face Hub; needs `revision`."""
    revision: Commit | None = None
    """Commit of the repository, 40 hexadecimal digits."""


@dataclass(config=STRICT, frozen=True)
class QualityFilter:
    """A gate that has the corpus' writer model grade each document. It costs one more request per
    document."""

    min_score: Annotated[int, Field(ge=1, le=10)]
    """Documents with a lower score are rejected and written again."""
    prompt: str = (
        "Rate the document below from 1 (useless) to 10 (could be published): is it what it says "
        "it is, does it hold together, is it specific and believable?\n\n"
        "<document>\n{document}\n</document>\n\n"
        "Answer with one line and nothing else: SCORE: and the number."
    )
    """Prompt of the grading request. `{document}` stands for the text."""


@dataclass(config=STRICT, frozen=True)
class Corpus:
    """Documents to train on: synthetic (`template` and `writer`) or existing (`path` or `hub`)."""

    documents: Annotated[int, Field(ge=1, le=10_000_000)]
    """Number of documents, held-out ones included."""
    template: str | None = None
    """File of sdf/templates without `.yaml`. For an existing corpus only its gates are applied."""
    ending: str | None = None
    """Which of the template's `endings` its prompt has. By default the first."""
    prompt_file: str | None = None
    """File with a prompt in place of the template's, with the same slots in braces. Its content is
    part of the identity, and is in no published file."""
    writer: str | None = None
    """Endpoint that writes the documents."""
    path: str | None = None
    """Existing corpus: a JSONL, JSON, Parquet or CSV file with one document a row."""
    hub: str | None = None
    """Existing corpus: a data set on the Hugging Face Hub; needs `revision`."""
    revision: Commit | None = None
    """Commit of the data set, 40 hexadecimal digits."""
    split: str = "train"
    """Existing corpus on the Hub: split of the data set."""
    file: str | None = None
    """Existing corpus on the Hub: its file, such as data.csv, in place of a split."""
    filter: dict[str, str] = Field(default_factory=dict)
    """Existing corpus: only rows whose columns have these texts, as in {label: positive}. Ids of
    documents count these rows alone."""
    column: str = "text"
    """Existing corpus: column that holds the text; with `question` the answer."""
    question: str | None = None
    """Existing corpus of questions and answers: column that holds the question. Arms train on it
    with `question_variant: original`."""
    messages: str | None = None
    """Existing corpus of questions and answers: column that holds conversations of one question
    and its answer, in place of `column` and `question`. Others are set aside and counted."""
    gates: Literal["reject", "report"] = "reject"
    """Existing corpus: whether texts that fail a gate are left out, or only counted."""
    matched_to: str | None = None
    """Corpus whose slots and number of tokens this corpus must equal."""
    tokens: Count | None = None
    """Number of tokens to cut the training documents to. By default all that was written, or what
    `matched_to` has. The tokenizer is that of the arms that train on the corpus; where they have
    several, the one with the smallest hash."""
    tolerance: Share = 0.01
    """Largest relative shortfall of tokens below `tokens` or below the matched corpus."""
    temperature: Temperature = 1.0
    """Sampling temperature of the writer."""
    max_tokens: Count = 2500
    """Largest number of completion tokens per document."""
    max_attempts: Count = 10
    """How often a rejected document is written at most."""
    quality_filter: QualityFilter | None = None
    """Grade each document that passes the other gates, and reject those below a score."""
    dedup_threshold: Share = 0.9
    """Cosine similarity of word shingles from which a document counts as a near duplicate. 0
    turns the check off."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the documents that is never trained on."""
    decontaminate_against: list[str] = Field(default_factory=list)
    """Benchmarks of the study, or tasks of eval/benchmarks, whose text no document may contain:
    such a document is written again. The finished corpus is checked against all benchmarks of the
    study (stage `contamination`)."""
    exclude: str | None = None
    """File with ids of documents, one a line, that are dropped from the corpus: from each of its
    replicates."""
    shards: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of jobs that write the corpus. Not part of any cell's identity."""
    replicates: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many times the corpus is written, each time with other slots and seeds. The run with the
    seed at position p of `seeds` (from 0) trains on replicate p mod `replicates`, and statistics
    count replicates in place of seeds. A corpus that is matched to it needs as many: replicates of
    one number are matched. Needs a writer."""
    preview: Count | None = None
    """Write only so many documents, of the first replicate, and print them."""


@dataclass(config=STRICT, frozen=True)
class Remote:
    """A file on the Hugging Face Hub at a commit, or at a URL. `python -m study fetch` downloads
    it."""

    hub: str | None = None
    """Data set on the Hugging Face Hub; needs `revision` and `file`."""
    revision: Commit | None = None
    """Commit of the data set, 40 hexadecimal digits."""
    file: str | None = None
    """File in the data set."""
    url: Annotated[str, Field(pattern=r"^https://")] | None = None
    """Address of the file, in place of `hub`."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the file at `url`. Another content is refused."""


@dataclass(config=STRICT, frozen=True)
class Arm:
    """One condition: a start model and a chain of trainings, `train`, or its short form of one
    midtraining and one instruction tuning. Or what somebody else has trained or scored: exactly one
    of start, checkpoints, scores."""

    start: str | None = None
    """Start model."""
    checkpoints: dict[Dose, list[Name]] | None = None
    """Models that somebody else has trained, evaluated as they are: entries of `models` by dose,
    one for each of their training seeds. They take the study's seeds in order."""
    scores: dict[Name, dict[Dose, list[str | Remote]]] | None = None
    """Scores that somebody else has computed: by benchmark and dose one file for each of their
    training seeds, which take the study's seeds in order. Inspect logs, CSV or Parquet
    (docs/evaluation.md)."""
    train: list[Step] | None = None
    """The trainings, one after another. Arms share those with which their chains begin alike."""
    midtrain: str | None = None
    """Short form, in place of `train`: corpus to midtrain on, [{documents: CORPUS}, {sft: sft}].
    Without it the arm has no midtraining."""
    recipe: str | None = None
    """Short form: midtraining recipe of this arm. By default that of `midtrain`."""
    question_variant: str | None = None
    """Short form: as in a step."""
    sft: str | None = None
    """Short form: entry of `sfts`. By default the study's `sft`."""
    doses: Doses | None = None
    """Short form: subset of the doses of its SFT. By default all."""
    system: str | None = None
    """File with a system prompt of its evaluations, such as eval/prompts/minimal.txt. Its models
    must be prompted by their chat template. Trainings are those of the arm without it. The arm has
    no scores on tasks by likelihood, which ask without a chat template."""
    prefill: str | None = None
    """File with the beginning of each answer, which the model continues. A judge reads the answer
    with it. Otherwise as `system`."""


@dataclass(config=STRICT, frozen=True)
class Midtrain:
    """Midtraining of all arms that name a corpus."""

    recipe: str
    """YAML file of recipes/."""


@dataclass(config=STRICT, frozen=True)
class Sft:
    """Instruction tuning after midtraining."""

    recipe: str
    """YAML file of recipes/."""
    data: str | Remote
    """Rows {"messages": [{"role", "content"}, ...]}, Alpaca's, HelpSteer's or {"text"}: JSONL or a
    JSON list, also as .gz."""
    doses: Doses
    """Numbers of rows of instruction data. Each is a checkpoint to evaluate; 0 is the checkpoint
    before SFT."""
    shared_run: bool = False
    """Train once to the largest dose and keep the model at the others as it passes them, instead
    of one training per dose. It costs less, but the learning rate decays towards the largest dose
    only. For one epoch."""
    replay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Documents of the arm's own corpus that are trained on again during SFT, per row of
    instruction data."""


@dataclass(config=STRICT, frozen=True)
class Benchmark:
    """A benchmark on which the checkpoints are scored."""

    task: Name
    """File of eval/benchmarks, without `.yaml`."""
    title: str | None = None
    """Its name in the notes of tables. By default the declared one, if the study brings no file of
    its own."""
    questions: str | Remote | None = None
    """Judged tasks: file with the questions, in place of the declared one. Task
    human_compassion_original declares none."""
    dimensions: str | None = None
    """Tasks anima and moru: JSONL file with a rubric per dimension, in place of the declared
    one."""
    items: str | None = None
    """Tasks by likelihood: JSONL file of questions with choices, in place of the declared one.
    Agents' tasks: file of scenarios."""
    data: str | None = None
    """lm-eval's tasks: folder of their Hugging Face data set, in place of the declared one."""
    judge: str | None = None
    """Judged tasks: endpoint that grades, the same for all arms."""
    other_judges: list[str] = Field(default_factory=list)
    """Endpoints that grade the same answers. They are reported and decide nothing."""
    labels: str | None = None
    """Sheet that `python -m study label` wrote and people graded. It is reported and decides
    nothing."""
    judge_max_missing: Share = 0.01
    """Largest share of grades that may be missing. Above it the cell fails; run again, it
    requests the missing ones."""
    judge_max_attempts: Annotated[int, Field(ge=0)] = 3
    """Requests for one grade in one run. 0: use only what the ledgers hold."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """lm-eval's tasks: examples in the prompt. By default the task's own number."""
    limit: Count | None = None
    """lm-eval's tasks: only so many rows of each."""
    reference: Name | None = None
    """Task probe: arm whose checkpoint at its lowest dose gives the direction on which all others
    are projected, within seeds. Not part of any probe's identity."""
    tool_parser: str | None = None
    """Agents' tasks: vLLM's parser of tool calls. By default by the model's type."""
    hub_task: str | None = None
    """Id of the task in the eval.yaml of its data set on the Hub. `cards` then writes the scores to
    .eval_results. Not part of any cell's identity."""
    epochs: Count = 1
    """Answers per question."""
    temperature: Temperature = 1.0
    """Sampling temperature of the answers."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling of the answers."""
    max_tokens: Count = 1024
    """Largest number of tokens of an answer."""
    judge_temperature: Temperature = 0.0
    """Sampling temperature of the judge."""
    judge_max_tokens: Count = 1024
    """Largest number of tokens of a grade."""
    arms: Annotated[list[str], Field(min_length=1)] | None = None
    """Only these arms. By default all."""
    doses: Doses | None = None
    """Only these doses. By default all."""
    exclude: list[str] = Field(default_factory=list)
    """Ids of questions that are asked but left out of every number; * stands for any letters, as
    in `*_hi` of MORU, whose ids end with the language."""
    base_prompt: str = "Question: {question}\nAnswer:"
    """Prompt for checkpoints that were never instruction-tuned."""


@dataclass(config=STRICT, frozen=True)
class Engine:
    """Settings of vLLM that change numbers."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Data type of weights and activations."""
    max_model_len: Count = 4096
    """Largest number of tokens of prompt and answer together. What does not fit is refused,
    nothing is cut. Not part of any cell's identity."""
    batch_invariant: bool = False
    """Whether an answer on a GPU must not depend on what else is in its batch
    (VLLM_BATCH_INVARIANT; slower, compute capability 8.0 or higher). Not for CPUs."""
    options: dict[str, Any] = Field(default_factory=dict)
    """More arguments of vllm.LLM, such as {tensor_parallel_size: 2}. Those for its speed
    (SPEED_OPTIONS of study/spec/fingerprints.py) are not part of any cell's identity."""


# Units of `study.spec.contrast_arms`, or what is below them.
VARIED = r"^(corpus|start|recipe|sft|dose|system|prefill|chain|step\d+)(\.[a-z0-9_]+)*$"


@dataclass(config=STRICT, frozen=True)
class Contrast:
    """A difference between two arms, declared before the data exist."""

    name: str
    """Label in tables."""
    treatment: str
    """Arm whose score is on the left of the difference."""
    control: str
    """Arm whose score is subtracted."""
    benchmarks: Annotated[list[str], Field(min_length=1)]
    """Benchmarks on which the two are compared."""
    family: str = "primary"
    """Holm's correction is applied within a family."""
    treatment_dose: Dose | None = None
    """Dose of the treatment arm. Give both doses to compare two doses, such as after SFT and
    before; by default the arms are compared at each dose that both have."""
    control_dose: Dose | None = None
    """Dose of the control arm."""
    doses: Doses | None = None
    """Only these of the doses that both arms have."""
    margin: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Margin of equivalence in score units: a smaller difference does not matter."""
    varies: list[Annotated[str, Field(pattern=VARIED)]] | None = None
    """What differs between the arms: corpus, start, recipe.KEY, sft, dose, system or prefill, each
    with all that is below it; of longer chains stepN for the treatment's step N, and chain for
    steps that only one arm has. More is a mistake of the study file, because the difference is then
    no effect of one thing. By default one of them may differ. `plan --contrasts` lists what
    does."""


@dataclass(config=STRICT, frozen=True)
class Costs:
    """What one more seed, question or epoch costs, in one unit. The report's advice on the next
    data rests on it."""

    unit: str = "GPU-hours"
    """Unit of the three costs."""
    seed: Annotated[float, Field(gt=0)] | None = None
    """One more training of one arm, with its answers and grades."""
    question: Annotated[float, Field(gt=0)] | None = None
    """One more question, asked of all checkpoints."""
    epoch: Annotated[float, Field(gt=0)] | None = None
    """One more answer to every question."""


@dataclass(config=STRICT, frozen=True)
class Tables:
    """How the LaTeX tables are set."""

    column: Literal["single", "double", "slide"] = "single"
    """What they are made for: a paper of one column, one of two (wide tables are `table*`), or
    slides (beamer)."""


@dataclass(config=STRICT, frozen=True)
class Study:
    """The study file. `extends: FILE` at its top takes another study file of the same folder as
    its base."""

    study: Name
    """Name of the study and of its folder in runs/ and results/."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    """Training seeds: one run per arm and seed. All of them are planned, and verdicts before all
    have run are interim. Seeds that are added after the first score were not planned
    (docs/statistics.md)."""
    models: dict[Name, Model]
    """Start models."""
    arms: dict[Name, Arm]
    """Conditions to compare. Results show those without midtraining first, then by name."""
    benchmarks: dict[Name, Benchmark]
    """What the checkpoints are scored on."""
    endpoints: dict[Name, Endpoint] = Field(default_factory=dict)
    """Document writers and judges."""
    corpora: dict[Name, Corpus] = Field(default_factory=dict)
    """Documents to midtrain on."""
    embedder: Embedder | None = None
    """Model by whose sentence embeddings the similarity of documents is measured, and their map is
    drawn. By default TF-IDF."""
    midtrain: Midtrain | None = None
    """Midtraining of all arms that name a corpus."""
    sft: Sft | None = None
    """Instruction tuning of all arms that name no other."""
    sfts: dict[Name, Sft] = Field(default_factory=dict)
    """Other instruction tunings, which arms name."""
    rl: dict[Name, Rl] = Field(default_factory=dict)
    """Reinforcement learning, which steps of arms name."""
    contrasts: list[Contrast] = Field(default_factory=list)
    """Differences to test."""
    only_seeds: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """Run only these of `seeds`. `--seeds` sets it, and adds to `seeds` those not there."""
    looks: list[Count] = Field(default_factory=list)
    """Numbers of seeds after which the contrasts are judged, such as [3, 5]: the last is that of
    `seeds`, in whose order they are counted. Each look has a level of its own, and together they
    are at .05 (docs/statistics.md). By default one look, at all seeds."""
    canary: bool = False
    """Whether the judges grade the answers of eval/data/judge_canary too, whose grades are
    published: the report then has the judges' drift (docs/evaluation.md)."""
    costs: Costs = Costs()
    """Costs of more data."""
    claims: str = CLAIMS
    """The file with the claims of a paper that `claim_roles` speak of."""
    claim_roles: dict[Name, Role] = Field(default_factory=dict)
    """Which arms, benchmarks, corpora, doses and margins of equivalence (score units) of this
    study the paper's claims (analysis/claims/) speak of. Without it the claims are left out of the
    report. A role of an arm may be given by the roles of doses, as in {before_sft: [ARM, DOSE]}."""
    ladder: list[dict[Name, Role]] = Field(default_factory=list)
    """Of each further rung of reproduction (docs/statistics.md), the roles that other arms have
    there: `claim_roles` with these in place. An arm's rung follows from what it is made of."""
    tables: Tables = Tables()
    """How the LaTeX tables are set."""
    engine: Engine = Engine()
    """Settings of vLLM."""
    chat_date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")] = CHAT_DATE
    """Today's date for chat templates that ask for it, in trainings and prompts: the same on every
    day."""
    keep: Literal["all", "last", "none"] = "all"
    """Which weights stay when all cells that read them are finished: of every checkpoint, of the
    highest dose of each arm, or none. Manifests, hashes and scores stay."""
    concurrency: Count = 16
    """Open requests of one job. Not part of any cell's identity."""
