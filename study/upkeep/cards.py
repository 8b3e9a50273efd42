"""Model cards for the Hugging Face Hub, made from manifests, settings and results alone."""

from pathlib import Path
from typing import Any

from core.errors import UserError
from core.stages import CHECKPOINT_STAGES
from study.upkeep.card_cells import (
    FinishedCell,
    behind,
    citation,
    content,
    hours_of,
    is_by_dummy,
    pin,
    read_cell,
    table,
    topic,
    trainings,
)
from study.upkeep.card_facts import StudyFacts
from study.upkeep.dataset_card import source_of
from study.upkeep.eval_results import Published, model_index
from study.upkeep.licenses import header, is_made_here, license_of

TRAINING_COUNTS = ("steps", "tokens", "first_loss", "last_loss")
DUMMY = (
    "**The kit's dummy, a set of rules, wrote or graded in place of a language model: "
    "this is a test.**"
)
LIMITS = """## Intended use and limits

Research on what midtraining on synthetic documents does to a language model, against matched
controls. This is one training run: runs that differ in seeds alone differ in scores, and verdicts
rest on several. Nothing was done for its safety, and what it says of animals, cities or policy is
no checked fact. A judge's scores are that judge's. The base model's usage restrictions and licence
also apply to this model."""
LLAMA = """

Built with Llama. LICENSE* and NOTICE are the agreement and the notice that the licence asks for;
the licence also wants that the name of a model that is tuned from this one begins with Llama."""


def model_card(
    folder: Path,
    results: Path | None = None,
    license: str = "",
    datasets: Any = (),
    facts: StudyFacts | None = None,
) -> str:
    """The card (README.md) of a checkpoint: the folder of a finished training or merge.

    Args:
        folder: The cell's folder.
        results: What the study has published, for this checkpoint's scores.
        license: The Hub's name of one, where it does not follow from the start model.
        datasets: The Hub's names of what it was trained on, besides those that the study took from
            there.
        facts: What the study file says of it.

    Raises:
        UserError: A cell is not finished, or is no checkpoint.
    """
    from huggingface_hub import ModelCard, ModelCardData

    cell = read_cell(folder, facts)
    if cell.stage not in CHECKPOINT_STAGES:
        raise UserError(
            where=str(folder),
            what="is no checkpoint of a training",
            fix=f"a model card is of a cell of {', '.join(CHECKPOINT_STAGES)}",
        )
    made_of = behind(cell)
    models = [used for used in made_of if used.stage == "model"]
    runs = trainings(made_of)
    facts = facts or StudyFacts(cell.study)
    corpora = _corpora(runs)
    prompts = {run.inputs["documents"].identity for run in runs if run.stage == "rl"}
    prompts -= {run.inputs["replay"].identity for run in runs if "replay" in run.inputs}
    start = models[0]
    hubs = [name for model in models if (name := pin(model, "model").get("hub"))]
    named = [pin(corpus, "source").get("hub") for corpus in corpora.values()]
    named += [pin(run, "data").get("hub") for run in runs]
    license = license_of(models, license)
    published = Published(cell, results)
    scores = model_index(published.scores)
    title = f"{cell.study}: {cell.name}"
    relation = "merge" if any(used.stage == "merge" for used in made_of) else "finetune"
    data = ModelCardData(
        **header(license, models),
        language=["en"],
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=(hubs if hubs[1:] else hubs[0]) if hubs else None,
        base_model_relation=relation if hubs else None,
        datasets=list(dict.fromkeys([*filter(None, named), *datasets])),
        tags=["alignment", "midtraining" if corpora.keys() - prompts else "instruction-tuning"],
        model_name=title if scores else None,
        eval_results=scores,
    )
    origin = pin(start, "model").get("hub") or "A local model"
    if is_made_here(start):
        origin = "A toy Llama made from scratch"
    steps = _steps(runs)
    if relation == "merge":
        steps.append("merged")
    text = [
        f"# {title}\n\n{origin}, {', '.join(steps)}: one checkpoint of the study `{cell.study}`.",
        DUMMY if published.is_by_dummy or any(map(is_by_dummy, corpora.values())) else "",
        _siblings(cell, facts),
        "## How it was made\n\n" + table([_training_row(run) for run in runs], "keys"),
        *map(_recipe, runs),
        *(
            f"{facts.link(corpus.identity, corpus.name, 'dataset')}: {source_of(corpus)}"
            for corpus in corpora.values()
        ),
        *(f"Warning: {warning}" for run in runs for warning in run.warnings),
        f"Compute: {compute(runs)}",
        "## Evaluation\n\n"
        + (table(published.scores, "keys") if published.scores else "No results were at hand."),
        f"Contrasts of its arm, over all seeds:\n\n{table(published.contrasts, 'keys')}"
        if published.contrasts
        else "",
        "Claims of the paper that rest on its arm, with the verdict over all seeds:\n\n"
        + table(published.claims, "keys")
        if published.claims
        else "",
        LIMITS + (LLAMA if license.startswith("llama") else ""),
        citation("This checkpoint", cell),
    ]
    return str(ModelCard(content(data.to_yaml(), text)))


def _siblings(cell: FinishedCell, facts: StudyFacts) -> str:
    """Which seed of how many a checkpoint is, and where the others are."""
    group = facts.siblings.get(cell.identity, ())
    number = next((n for n, row in enumerate(group, 1) if row.identity == cell.identity), 0)
    if not number:
        return ""
    this = group[number - 1]
    others = [
        f"seed {row.seed} {facts.link(row.identity, facts.names.get(row.identity, row.arm))}"
        + ("" if row.is_finished else " (not trained yet)")
        for row in group
        if row is not this
    ]
    listed = f" The others: {', '.join(others)}." if others else ""
    dose = f" at {this.dose} rows of instruction data" if this.dose else ""
    return f"Seed {number} of {len(group)} of the arm `{this.arm}`{dose}.{listed}"


def compute(runs: list[FinishedCell]) -> str:
    """GPU-hours and energy of trainings, as far as manifests have them, as sentences.

    Energy is bounded by the power limits of the GPUs: nothing measures what they draw.
    """
    hours = sum(map(hours_of, runs))
    jobs = f"{hours:,.2f} hours of {len(runs)} trainings, without runs that were interrupted"
    recorded = [run for run in runs if run.manifest.get("hardware")]
    if len(recorded) < len(runs) or not runs:
        return f"{jobs}; GPU-hours and energy are not on record."
    gpu_hours, joules, names = 0.0, 0.0, set()
    is_bounded = True
    for run in runs:
        hardware = run.manifest["hardware"]
        if not hardware.get("gpus"):
            continue
        of_run = hours_of(run) * run.counts.get("ranks", 1)
        gpu_hours += of_run
        names |= {*hardware["gpus"]}
        limits = hardware.get("power_limits_watts")
        is_bounded &= bool(limits)
        joules += of_run * 3600 * max(limits or [0.0])
    if not gpu_hours:
        return f"{jobs}, on CPUs: 0 GPU-hours; their energy is not on record."
    energy = f"at most {joules / 3.6e6:,.2f} kWh by their power limits"
    energy = energy if is_bounded else "their power limits, and so their energy, are not on record"
    return f"{jobs}: {gpu_hours:,.2f} GPU-hours on {', '.join(sorted(names))}, {energy}."


def _corpora(runs: list[FinishedCell]) -> dict[str, FinishedCell]:
    """What trainings have read of documents, replayed ones and prompts too, by identity."""
    read = [run.inputs.get(role) for run in runs for role in ("documents", "replay")]
    return {corpus.identity: corpus for corpus in read if corpus}


def _steps(runs: list[FinishedCell]) -> list[str]:
    """What was done to the start model, without merges."""
    corpora = [run.inputs["documents"] for run in runs if run.stage == "midtrain"]
    steps = list(dict.fromkeys(f"midtrained on {topic(corpus)}" for corpus in corpora))
    stages = {run.stage for run in runs}
    if "sft" in stages:
        steps.append("instruction-tuned")
    if "rl" in stages:
        steps.append("trained by GRPO")
    return steps


def _training_row(run: FinishedCell) -> dict[str, Any]:
    row = {"training": run.name, "seed": run.settings["seed"], "rows": run.settings.get("dose", "")}
    return row | {key.replace("_", " "): run.counts.get(key, "") for key in TRAINING_COUNTS}


def _recipe(run: FinishedCell) -> str:
    data = pin(run, "data")
    name = ""
    if data:
        name = f" on {data.get('hub') or data['url']} {data.get('revision') or ''}".rstrip()
    recipe = run.settings["recipe"] | run.settings.get("grpo", {})
    if "replay" in run.inputs:
        recipe |= {"replay": f"{run.settings['replay']} of {run.inputs['replay'].name}"}
    if reward := run.settings.get("reward"):
        text = reward.get("contains")
        model = pin(run, "reward").get("hub") or "a local classifier"
        recipe |= {"reward": f"of answers with {text!r}" if text else f"by {model}"}
    listed = ", ".join(
        f"{key} {value}" for key, value in recipe.items() if value not in (None, False, 0)
    )
    return f"`{run.name}`{name}: {listed}."
