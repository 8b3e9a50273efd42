"""Names and paths of a study file that point nowhere, in circles, or twice.

The file is checked as it was read, beside its validation by `study.spec.schema`, so that all
mistakes are shown at once: a value of a wrong type is passed over here.
"""

import re
from dataclasses import dataclass
from typing import Any

from core.grpo_recipe import Grpo
from core.paths import ROOT, is_there, resolve
from core.recipe import TinyLlama, Training
from core.strict_yaml import KeyPath, did_you_mean
from study.spec.declaration import FILES_OF, declaration_problems
from study.spec.fingerprints import PARALLEL_OPTIONS, yaml_once
from study.spec.presets import asks_for_no_key
from study.spec.template import shipped_templates, usable_template

Mapping = dict[str, Any]
# Sections of named things, and what one of them is called in a message.
SECTIONS = {
    "models": "model",
    "corpora": "corpus",
    "arms": "arm",
    "benchmarks": "benchmark",
    "endpoints": "endpoint",
    "sfts": "sft",
    "rl": "rl",
}
# Options that the kit chooses itself: of a vLLM server ...
OWN_OPTIONS = ("host", "port", "uds", "api_key", "model", "served_model_name")
# ... and of the engine that evaluates.
OWN_ENGINE = (
    "model",
    "pretrained",
    "tokenizer",
    "hf_config_path",
    "dtype",
    "batch_invariant",
    "max_model_len",
    "seed",
    "batch_size",
    "enable_prefix_caching",
)
# Keys of a benchmark: files in place of the declared ones, and what only judged tasks, lm-eval's,
# probes and agents take.
OWN_FILES = ("questions", "dimensions", "items", "data")
JUDGING = (
    "judge",
    "other_judges",
    "labels",
    "judge_max_missing",
    "judge_max_attempts",
    "judge_temperature",
    "judge_max_tokens",
)
LM_EVAL = ("num_fewshot", "limit")
PROBE = ("reference",)
AGENT = ("tool_parser",)


@dataclass(frozen=True)
class Mistake:
    """One mistake in a file, by the path of the value that it is in."""

    at: KeyPath
    what: str
    fix: str = ""  # what to do, or what is valid


Mistakes = list[Mistake]
THIS_STUDY = "<this study>"  # in a fix: stands for the file, as it was typed
PIN = f"python -m study fetch {THIS_STUDY} --pin writes the newest"


def references(raw: Mapping) -> Mistakes:
    """Names that point nowhere, in circles, or twice."""
    corpora = section_entries(raw, "corpora")
    mistakes: Mistakes = []
    for name, corpus in corpora.items():
        mistakes += _corpus(name, corpus, raw)
    mistakes += _cycles(corpora) + _unmatched(corpora)
    for name, endpoint in section_entries(raw, "endpoints").items():
        mistakes += _endpoint(name, endpoint)
    for name, model in section_entries(raw, "models").items():
        mistakes += _model(name, model, raw)
    for name, bench in section_entries(raw, "benchmarks").items():
        mistakes += _benchmark(name, bench, raw)
    engine_options = mapping(mapping(raw.get("engine")).get("options"))
    mistakes += [
        Mistake(("engine", "options", key), "is not an option to give here: the kit sets it")
        for key in engine_options
        if key in OWN_ENGINE
    ]
    mistakes += _gpu_options(("engine", "options"), engine_options)
    for section in ("midtrain", "sft"):
        mistakes += _training((section,), raw.get(section))
    for name, sft in section_entries(raw, "sfts").items():
        mistakes += _training(("sfts", name), sft)
    mistakes += _repeated(("seeds",), raw.get("seeds"), "seed")
    mistakes += _repeated(("only_seeds",), raw.get("only_seeds"), "seed")
    mistakes += [
        Mistake(("only_seeds",), f"{seed} is none of `seeds`", "add it at the end of `seeds`")
        for seed in as_list(raw.get("only_seeds"))
        if seed not in as_list(raw.get("seeds"))
    ]
    return mistakes


def check_reference(raw: Mapping, section: str, at: KeyPath, name: Any) -> Mistakes:
    """A mistake where `name`, the value at `at`, is no name in a section of the file."""
    names = list(mapping(raw.get(section)))
    if not isinstance(name, str) or name in names:
        return []
    listed = f"valid: {', '.join(map(str, names))}" if names else f"the file has no {section}"
    what = f"there is no {SECTIONS[section]} {name!r}{did_you_mean(name, names)}"
    return [Mistake(at, what, listed)]


def mapping(value: Any) -> Mapping:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def section_entries(raw: Mapping, section: str) -> dict[str, Mapping]:
    """The named things of a section that are mappings."""
    values = mapping(raw.get(section))
    return {name: value for name, value in values.items() if isinstance(value, dict)}


def _corpus(name: str, corpus: Mapping, raw: Mapping) -> Mistakes:
    at = ("corpora", name)
    mistakes = check_reference(raw, "endpoints", (*at, "writer"), corpus.get("writer"))
    mistakes += _corpus_source(at, corpus)
    if "{document}" not in str(mapping(corpus.get("quality_filter")).get("prompt", "{document}")):
        what = "must hold {document}, where the text is put"
        mistakes.append(Mistake((*at, "quality_filter", "prompt"), what))
    for i, bench in enumerate(as_list(corpus.get("decontaminate_against"))):
        if not is_there(f"eval/benchmarks/{bench}.yaml"):
            mistakes += check_reference(raw, "benchmarks", (*at, "decontaminate_against", i), bench)
    mistakes += check_reference(raw, "corpora", (*at, "matched_to"), corpus.get("matched_to"))
    template = corpus.get("template")
    if isinstance(template, str) and template not in shipped_templates():
        fix = f"valid: {', '.join(shipped_templates())}"
        mistakes.append(Mistake((*at, "template"), f"there is no template {template!r}", fix))
    return mistakes


def _corpus_source(at: KeyPath, corpus: Mapping) -> Mistakes:
    """A corpus is written by a template and a writer, or taken from a file or from a hub."""
    sources = [key for key in ("writer", "path", "hub") if corpus.get(key)]
    if len(sources) != 1:
        what = "needs exactly one of writer (with template), path, hub (with revision)"
        return [Mistake(at, what)]
    (source,) = sources
    required = {"writer": "template", "hub": "revision"}.get(source)
    if required and not corpus.get(required):
        return [Mistake(at, f"{source} needs {required}", PIN if source == "hub" else "")]
    if source == "writer":
        return [
            Mistake((*at, key), "is for an existing corpus", "remove it")
            for key in ("question", "messages", "gates", "file", "filter")
            if corpus.get(key)
        ]
    if corpus.get("file") and (source != "hub" or corpus.get("split")):
        what = "is for a corpus on the Hub, and stands in place of split"
        return [Mistake((*at, "file"), what, "remove one")]
    if corpus.get("messages") and (corpus.get("question") or corpus.get("column")):
        what = "stands in place of column and question"
        return [Mistake((*at, "messages"), what, "keep it, or these")]
    return [
        Mistake((*at, key), "is for a corpus with a writer", "remove it")
        for key in ("preview", "shards", "quality_filter", "replicates", "ending", "prompt_file")
        if corpus.get(key)
    ]


def _cycles(corpora: dict[str, Mapping]) -> Mistakes:
    mistakes: Mistakes = []
    for name in corpora:
        path = [name]
        while (
            following := str(corpora.get(path[-1], {}).get("matched_to"))
        ) in corpora and following not in path:
            path.append(following)
        if following == name:
            circle = " -> ".join([*path, name])
            at = ("corpora", name, "matched_to")
            fix = "one corpus must stand alone"
            mistakes.append(Mistake(at, f"goes in a circle: {circle}", fix))
    return mistakes


def _unmatched(corpora: dict[str, Mapping]) -> Mistakes:
    """Corpora that can't match: `sdf.documents` would refuse them, but after drafts were paid."""
    mistakes: Mistakes = []
    for name, corpus in corpora.items():
        reference_name = corpus.get("matched_to")
        reference = corpora.get(reference_name) if isinstance(reference_name, str) else None
        if reference is None:
            continue
        at = ("corpora", name)
        for key, default in (("documents", None), ("held_out", 0.0), ("replicates", 1)):
            value = corpus.get(key, default)
            expected = reference.get(key, default)
            if value != expected:
                what = f"{value} against {expected} of {reference_name}, which it is matched to"
                fix = "give both the same"
                if key == "replicates" and not corpus.get("writer"):
                    fix = "only a corpus with a writer has replicates: take matched_to away"
                mistakes.append(Mistake((*at, key), what, fix))
        slots = _own_slots(corpus.get("template"))
        reference_slots = _own_slots(reference.get("template"))
        for slot in sorted(slots.keys() & reference_slots.keys()):
            if slots[slot] != reference_slots[slot]:
                what = (
                    f"its slot {slot!r} has other values than in {reference_name}, "
                    "which it is matched to"
                )
                mistakes.append(Mistake((*at, "template"), what, "rename it"))
    return mistakes


def has_replicates(raw: Mapping) -> bool:
    """Whether a corpus of the file is written more than once."""
    return any(
        corpus.get("replicates", 1) != 1 for corpus in section_entries(raw, "corpora").values()
    )


def _own_slots(template: Any) -> Mapping:
    """The slots that a template defines itself."""
    return usable_template(template).get("slots") or {}


def task_names(raw: Mapping) -> list[str]:
    """The tasks that exist and that a benchmark of the file names."""
    listed = {str(bench.get("task")) for bench in section_entries(raw, "benchmarks").values()}
    return sorted(name for name in listed if is_there(f"eval/benchmarks/{name}.yaml"))


def template_names(raw: Mapping) -> list[str]:
    """The templates that exist and that a corpus of the file names."""
    listed = {str(corpus.get("template")) for corpus in section_entries(raw, "corpora").values()}
    return sorted(listed & {*shipped_templates()})


def recipe_names(raw: Mapping) -> list[tuple[str, type]]:
    """The recipes that exist and that the file names, and what each is the recipe of."""
    trainings = [mapping(raw.get("midtrain")), mapping(raw.get("sft"))]
    trainings += [*section_entries(raw, "sfts").values(), *section_entries(raw, "arms").values()]
    for arm in section_entries(raw, "arms").values():
        trainings += [step for step in as_list(arm.get("train")) if isinstance(step, dict)]
    listed: list[tuple[Any, type]]
    listed = [(training.get("recipe"), Training) for training in trainings]
    listed += [(rl.get("recipe"), Grpo) for rl in section_entries(raw, "rl").values()]
    listed += [(model.get("make"), TinyLlama) for model in section_entries(raw, "models").values()]
    paths = [(path, kind) for path, kind in listed if isinstance(path, str)]
    return [(path, kind) for path, kind in dict.fromkeys(paths) if is_there(path)]


def _endpoint(name: str, endpoint: Mapping) -> Mistakes:
    at = ("endpoints", name)
    served_by = str(endpoint.get("served_by", "url"))
    required = {"url": ("base_url", "model", "key_env"), "vllm": ("path",)}.get(served_by, ())
    if asks_for_no_key(endpoint):
        required = ("base_url", "model")
    hint = " (or `served_by: dummy` for the dummy)" if served_by == "url" else ""
    mistakes: Mistakes = [
        Mistake(at, f"needs {key}{hint}") for key in required if not endpoint.get(key)
    ]
    if served_by != "vllm":
        return mistakes
    mistakes += [
        Mistake((*at, key), "the kit chooses it where it serves the model", "remove it")
        for key in ("base_url", "model", "key_env")
        if endpoint.get(key)
    ]
    for key in mapping(endpoint.get("options")):
        if not re.fullmatch("[a-z][a-z0-9_]*", str(key)) or key in OWN_OPTIONS:
            what = "is not an option to give here"
            fix = "write those of `vllm serve` with _, without host, port and names"
            mistakes.append(Mistake((*at, "options", key), what, fix))
    return mistakes + _gpu_options((*at, "options"), mapping(endpoint.get("options")))


def _gpu_options(at: tuple[str, ...], options: Mapping) -> Mistakes:
    """Of vLLM's options those that would fail only on a GPU, after the trainings."""
    mistakes = [
        Mistake((*at, name), f"{options[name]!r} is no number of GPUs", "give 1, 2 or more")
        for name in PARALLEL_OPTIONS
        if name in options and (type(options[name]) is not int or options[name] < 1)
    ]
    share = options.get("gpu_memory_utilization", 1)
    if type(share) not in (int, float) or not 0 < share <= 1:
        what = f"{share!r} is no share of a GPU's memory"
        mistakes.append(Mistake((*at, "gpu_memory_utilization"), what, "give 0.9, or another"))
    return mistakes


def _model(name: str, model: Mapping, raw: Mapping) -> Mistakes:
    at = ("models", name)
    mistakes: Mistakes = []
    if sum(bool(model.get(key)) for key in ("make", "path", "hub")) != 1:
        mistakes.append(Mistake(at, "needs exactly one of make, path, hub (with revision)"))
    if model.get("hub") and not model.get("revision"):
        mistakes.append(Mistake(at, "hub needs revision, a commit (40 hex)", PIN))
    mistakes += check_reference(raw, "models", (*at, "tokenizer"), model.get("tokenizer"))
    other = mapping(raw.get("models")).get(str(model.get("tokenizer")))
    if model.get("tokenizer") and (model.get("make") or mapping(other).get("make")):
        what = "is for a model by path or hub, and names one"
        mistakes.append(Mistake((*at, "tokenizer"), what, "remove it"))
    return mistakes


def _benchmark(name: str, bench: Mapping, raw: Mapping) -> Mistakes:
    at = ("benchmarks", name)
    mistakes = _task(at, bench, raw)
    for i, arm in enumerate(as_list(bench.get("arms"))):
        mistakes += check_reference(raw, "arms", (*at, "arms", i), arm)
    mistakes += check_reference(raw, "endpoints", (*at, "judge"), bench.get("judge"))
    for i, judge in enumerate(as_list(bench.get("other_judges"))):
        mistakes += check_reference(raw, "endpoints", (*at, "other_judges", i), judge)
    return mistakes


def _task(at: KeyPath, bench: Mapping, raw: Mapping) -> Mistakes:
    """Keys that do not fit the benchmark's task, and judges that are given wrongly."""
    valid = sorted(path.stem for path in (ROOT / "eval/benchmarks").glob("*.yaml"))
    task = bench.get("task")
    if task not in valid:
        hint = did_you_mean(str(task), valid)
        mistake = Mistake(
            (*at, "task"), f"there is no task {task!r}{hint}", f"valid: {', '.join(valid)}"
        )
        return [mistake] if isinstance(task, str) else []
    if declaration_problems(task):
        return []  # `load_study` reports them
    declared = yaml_once(f"eval/benchmarks/{task}.yaml")
    mistakes: Mistakes = []
    options = [*declared["files"]]
    if declared["scorer"] not in FILES_OF:
        options += JUDGING
        if not bench.get("judge"):
            mistakes.append(Mistake((*at, "judge"), "missing", f"task {task} needs it"))
    if declared["scorer"] == "lm_eval":
        options += LM_EVAL
    if declared["scorer"] == "probe":
        options += PROBE
        mistakes += _reference(at, bench, raw)
    if declared["scorer"] == "agent":
        options += AGENT
    mistakes += [
        Mistake((*at, key), f"task {task} has no such option", "remove it")
        for key in (*OWN_FILES, *JUDGING, *LM_EVAL, *PROBE, *AGENT)
        if key in bench and key not in options
    ]
    if isinstance(questions := bench.get("questions"), dict):
        mistakes += remote_mistakes((*at, "questions"), questions)
    mistakes += [
        Mistake((*at, key), "missing", f"eval/benchmarks/{task}.yaml says what to name")
        for key, source in declared["files"].items()
        if source is None and not bench.get(key)
    ]
    judges = [bench.get("judge"), *as_list(bench.get("other_judges"))]
    for judge in judges:
        mistakes += _judge_under_test((*at, "judge"), judge, raw)
    return mistakes + _repeated((*at, "other_judges"), judges, "judge")


def _reference(at: KeyPath, bench: Mapping, raw: Mapping) -> Mistakes:
    """The arm whose direction a probe compares with: it must be among those that are probed."""
    name = bench.get("reference")
    if name is None:
        fix = f"the arm to compare with: {', '.join(map(str, mapping(raw.get('arms'))))}"
        return [Mistake((*at, "reference"), "missing", fix)]
    mistakes = check_reference(raw, "arms", (*at, "reference"), name)
    arms = as_list(bench.get("arms"))
    if not mistakes and arms and name not in arms:
        what = f"{name} is none of this benchmark's arms"
        mistakes.append(Mistake((*at, "reference"), what, f"valid: {', '.join(map(str, arms))}"))
    return mistakes


def _judge_under_test(at: KeyPath, judge: Any, raw: Mapping) -> Mistakes:
    """A judge that is a model under test would grade itself."""
    endpoint = section_entries(raw, "endpoints").get(judge) if isinstance(judge, str) else None
    if endpoint is None:
        return []
    mistakes: Mistakes = []
    for name, model in section_entries(raw, "models").items():
        path = model.get("path")
        served = endpoint.get("path")
        same_folder = (
            path and served and resolve(str(path)).resolve() == resolve(str(served)).resolve()
        )
        same_name = endpoint.get("model") and model.get("hub") == endpoint["model"]
        if same_folder or same_name:
            what = f"{judge} is the model {name!r}, which is under test: it would grade itself"
            mistakes.append(Mistake(at, what, "take another judge"))
    return mistakes


def _training(at: KeyPath, training: Any) -> Mistakes:
    """`midtrain`, `sft` or one of `sfts`."""
    if not isinstance(training, dict):
        return []
    mistakes: Mistakes = []
    if isinstance(data := training.get("data"), dict):
        mistakes += remote_mistakes((*at, "data"), data)
    return mistakes + _repeated((*at, "doses"), training.get("doses"), "dose")


def remote_mistakes(at: KeyPath, data: Mapping) -> Mistakes:
    if bool(data.get("hub")) == bool(data.get("url")):
        return [Mistake(at, "needs exactly one of hub (with revision and file), url")]
    return [
        Mistake((*at, key), "missing", PIN if key == "revision" else "hub needs it")
        for key in ("revision", "file")
        if data.get("hub") and not data.get(key)
    ]


def _repeated(at: KeyPath, values: Any, label: str) -> Mistakes:
    listed = as_list(values)
    repeated = sorted({str(value) for value in listed if listed.count(value) > 1})
    what = "{} {} is listed twice"
    return [Mistake(at, what.format(label, value), f"each {label} once") for value in repeated]
