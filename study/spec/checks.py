"""Names and paths of a study file that point nowhere, in circles, or twice."""

import re
from typing import Any

import yaml

from core.paths import ROOT, resolve
from core.strict_yaml import Problems, did_you_mean

_NAMED = ("models", "corpora", "arms", "benchmarks", "endpoints", "sfts")
OWN_OPTIONS = (
    "host",
    "port",
    "uds",
    "api_key",
    "model",
    "served_model_name",
)  # of a vLLM server: the kit's to choose
OWN_FILES = (
    "questions",
    "dimensions",
    "items",
    "data",
)  # of a benchmark, in place of the declared ones
JUDGING = (
    "judge",
    "other_judges",
    "labels",
    "judge_missing",
    "judge_asks",
    "judge_temperature",
    "judge_max_tokens",
)
OWN_ENGINE = (
    "model",
    "pretrained",
    "dtype",
    "max_model_len",
    "seed",
    "batch_size",
    "enable_prefix_caching",
)
LM_EVAL = ("num_fewshot", "limit")


def references(raw: dict[str, Any]) -> Problems:
    """Names that point nowhere, in circles, or twice: (path in the file, text). Tolerates values of a wrong type."""
    names = {
        section: list(raw[section]) if isinstance(raw.get(section), dict) else []
        for section in _NAMED
    }
    found: Problems = []

    def must_be(section: str, at: tuple[Any, ...], value: Any) -> None:
        if isinstance(value, str) and value not in names[section]:
            valid = names[section]
            listed = (
                f"; valid: {', '.join(map(str, valid))}"
                if valid
                else f"; the file has no {section}"
            )
            kind = section[:-1].replace("corpor", "corpus")
            found.append((at, f"there is no {kind} {value!r}{did_you_mean(value, valid)}{listed}"))

    def each(section: str) -> list[tuple[str, dict[str, Any]]]:
        values = raw.get(section)
        return (
            [(k, v) for k, v in values.items() if isinstance(v, dict)]
            if isinstance(values, dict)
            else []
        )

    for name, arm in each("arms"):
        must_be("models", ("arms", name, "start"), arm.get("start"))
        must_be("corpora", ("arms", name, "midtrain"), arm.get("midtrain"))
        must_be("sfts", ("arms", name, "sft"), arm.get("sft"))
        found += _arm(name, arm, raw)
    for name, corpus in each("corpora"):
        must_be("endpoints", ("corpora", name, "writer"), corpus.get("writer"))
        found += _source(name, corpus)
        score = corpus["score"] if isinstance(corpus.get("score"), dict) else {}
        if "{document}" not in str(score.get("prompt", "{document}")):
            found.append(
                (
                    ("corpora", name, "score", "prompt"),
                    "must hold {document}, where the text is put",
                )
            )
        found += _missing_file(("corpora", name, "path"), corpus.get("path"))
        for j, bench in enumerate(corpus["avoid"] if isinstance(corpus.get("avoid"), list) else []):
            must_be("benchmarks", ("corpora", name, "avoid", j), bench)
        must_be("corpora", ("corpora", name, "matched_to"), corpus.get("matched_to"))
        if isinstance(corpus.get("template"), str):
            valid = sorted(
                p.stem for p in (ROOT / "sdf/templates").glob("*.yaml") if p.stem != "slots"
            )
            if corpus["template"] not in valid:
                text = f"there is no template {corpus['template']!r}; valid: {', '.join(valid)}"
                found.append((("corpora", name, "template"), text))
    found += _cycles(dict(each("corpora"))) + _unmatched(dict(each("corpora")))
    for name, endpoint in each("endpoints"):
        found += _endpoint(name, endpoint)
    for name, model in each("models"):
        if sum(bool(model.get(key)) for key in ("make", "path", "hub")) != 1:
            found.append((("models", name), "needs exactly one of make, path, hub (with revision)"))
        if model.get("hub") and not model.get("revision"):
            found.append((("models", name), "hub needs revision, a commit (40 hex)"))
        for key in ("make", "path", "chat_template"):
            found += _missing_file(("models", name, key), model.get(key))
    for name, bench in each("benchmarks"):
        found += _benchmark(name, bench, raw)
        for j, arm in enumerate(bench["arms"] if isinstance(bench.get("arms"), list) else []):
            must_be("arms", ("benchmarks", name, "arms", j), arm)
        must_be("endpoints", ("benchmarks", name, "judge"), bench.get("judge"))
        for j, judge in enumerate(
            bench["other_judges"] if isinstance(bench.get("other_judges"), list) else []
        ):
            must_be("endpoints", ("benchmarks", name, "other_judges", j), judge)
    engine = raw["engine"] if isinstance(raw.get("engine"), dict) else {}
    for key in engine["options"] if isinstance(engine.get("options"), dict) else []:
        if key in OWN_ENGINE:
            found.append(
                (("engine", "options", key), "is not an option to give here: the kit sets it")
            )
    trainings: list[tuple[tuple[str, ...], Any]] = [
        ((section,), raw.get(section)) for section in ("midtrain", "sft")
    ]
    trainings += [(("sfts", name), sft) for name, sft in each("sfts")]
    for at, training in trainings:
        if isinstance(training, dict):
            for key in ("recipe", "data"):
                found += _missing_file((*at, key), training.get(key))
            if isinstance(data := training.get("data"), dict):
                found += _remote((*at, "data"), data)
            found += _repeated((*at, "doses"), training.get("doses"), "dose")
    for i, contrast in enumerate(
        raw.get("contrasts") or [] if isinstance(raw.get("contrasts"), list) else []
    ):
        if isinstance(contrast, dict):
            must_be("arms", ("contrasts", i, "of"), contrast.get("of"))
            must_be("arms", ("contrasts", i, "against"), contrast.get("against"))
            for j, bench in enumerate(
                contrast["on"] if isinstance(contrast.get("on"), list) else []
            ):
                must_be("benchmarks", ("contrasts", i, "on", j), bench)
            if (contrast.get("of_dose") is None) != (contrast.get("against_dose") is None):
                found.append((("contrasts", i), "needs both of of_dose, against_dose, or neither"))
    found += _repeated(("seeds",), raw.get("seeds"), "seed")
    return found


def _arm(name: str, arm: dict[str, Any], raw: dict[str, Any]) -> Problems:
    at = ("arms", name)
    found = _missing_file((*at, "recipe"), arm.get("recipe"))
    if arm.get("midtrain") and not raw.get("midtrain") and not arm.get("recipe"):
        found.append(
            (
                (*at, "midtrain"),
                "the file has no `midtrain: {recipe: ...}`; add it, or give the arm a recipe",
            )
        )
    found += [
        ((*at, key), "is for an arm with midtrain")
        for key in ("recipe", "form")
        if key in arm and not arm.get("midtrain")
    ]
    corpora = raw["corpora"] if isinstance(raw.get("corpora"), dict) else {}
    corpus = corpora.get(arm.get("midtrain")) if isinstance(arm.get("midtrain"), str) else None
    forms = _template(corpus.get("template")).get("forms", []) if isinstance(corpus, dict) else []
    if arm.get("form") and arm["form"] not in forms:
        valid = f"valid: {', '.join(forms)}" if forms else "its corpus has no questions and answers"
        found.append(((*at, "form"), f"there is no form {arm['form']!r}; {valid}"))
    sfts = raw["sfts"] if isinstance(raw.get("sfts"), dict) else {}
    sft = sfts.get(arm["sft"]) if isinstance(arm.get("sft"), str) else raw.get("sft")
    known = (sft.get("doses") if isinstance(sft, dict) else None) or [0]
    for dose in (
        arm["doses"] if isinstance(arm.get("doses"), list) and isinstance(known, list) else []
    ):
        if dose not in known:
            found.append(
                (
                    (*at, "doses"),
                    f"{dose} is none of its SFT's doses ({', '.join(map(str, known))})",
                )
            )
    return found


def _remote(at: tuple[Any, ...], data: dict[str, Any]) -> Problems:
    if bool(data.get("hub")) == bool(data.get("url")):
        return [(at, "needs exactly one of hub (with revision and file), url")]
    return [
        ((*at, key), "missing; hub needs it")
        for key in ("revision", "file")
        if data.get("hub") and not data.get(key)
    ]


def _cycles(corpora: dict[str, dict[str, Any]]) -> Problems:
    found = []
    for name in corpora:
        seen = [name]
        while (
            following := corpora.get(seen[-1], {}).get("matched_to")
        ) in corpora and following not in seen:
            seen.append(following)
        if following == name:
            text = f"goes in a circle: {' -> '.join([*seen, name])}; one corpus must stand alone"
            found.append((("corpora", name, "matched_to"), text))
    return found


def _unmatched(corpora: dict[str, dict[str, Any]]) -> Problems:
    """Corpora that can't match: what `sdf.documents` would say too, but only after drafts were paid for."""
    found: Problems = []
    for name, corpus in corpora.items():
        other = (
            corpora.get(matched) if isinstance(matched := corpus.get("matched_to"), str) else None
        )
        for key, none in (("documents", None), ("held_out", 0.0)) if other else ():
            ours, theirs = corpus.get(key, none), other.get(key, none)  # type: ignore[union-attr]
            if ours != theirs:
                text = f"{ours} against {theirs} of {matched}, which it is matched to; give both the same"
                found.append((("corpora", name, key), text))
        own = [_own_slots(each.get("template")) for each in (corpus, other or {})]
        for slot in sorted(own[0].keys() & own[1].keys()):
            if own[0][slot] != own[1][slot]:
                text = f"its slot {slot!r} has other values than in {matched}, which it is matched to; rename it"
                found.append((("corpora", name, "template"), text))
    return found


def _own_slots(template: Any) -> dict[str, Any]:
    return _template(template).get("slots") or {}


def _template(name: Any) -> dict[str, Any]:
    path = ROOT / f"sdf/templates/{name}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def _source(name: str, corpus: dict[str, Any]) -> Problems:
    """A corpus is written by a template and a writer, or taken from a file or from Hugging Face at a revision."""
    at, given = ("corpora", name), {key for key in ("writer", "path", "hub") if corpus.get(key)}
    if len(given) != 1:
        return [(at, "needs exactly one of writer (with template), path, hub (with revision)")]
    needs = {"writer": "template", "hub": "revision"}.get(*given)
    if needs and not corpus.get(needs):
        return [(at, f"{given.pop()} needs {needs}")]
    keys = ("preview", "shards", "score")
    if "writer" not in given:
        return [
            ((*at, key), "is for a corpus with a writer; delete it")
            for key in keys
            if corpus.get(key)
        ]
    return []


def _endpoint(name: str, endpoint: dict[str, Any]) -> Problems:
    at, by = ("endpoints", name), endpoint.get("served_by", "url")
    needed = {"url": ("base_url", "model", "key_env"), "vllm": ("path",)}.get(by, ())
    other = {"url": " (or `served_by: kit` for the stand-in)"}.get(by, "")
    found: Problems = [(at, f"needs {key}{other}") for key in needed if not endpoint.get(key)]
    if by == "vllm":
        found += _missing_file((*at, "path"), endpoint.get("path"))
        for key in ("base_url", "model", "key_env"):
            if endpoint.get(key):
                found.append(
                    ((*at, key), "is the kit's to choose where it serves the model; delete it")
                )
        for key in endpoint["options"] if isinstance(endpoint.get("options"), dict) else []:
            if not re.fullmatch("[a-z][a-z0-9_]*", str(key)) or key in OWN_OPTIONS:
                text = "is not an option to give here: write those of `vllm serve` with _, without host, port and names"
                found.append(((*at, "options", key), text))
    return found


def _benchmark(name: str, bench: dict[str, Any], raw: dict[str, Any]) -> Problems:
    at, valid = (
        ("benchmarks", name),
        sorted(path.stem for path in (ROOT / "eval/benchmarks").glob("*.yaml")),
    )
    task = bench.get("task")
    if task not in valid:
        text = (
            f"there is no task {task!r}{did_you_mean(str(task), valid)}; valid: {', '.join(valid)}"
        )
        return [((*at, "task"), text)] if isinstance(task, str) else []
    declared = yaml.safe_load((ROOT / f"eval/benchmarks/{task}.yaml").read_text(encoding="utf-8"))
    judged = declared["scorer"] not in ("likelihood", "lm_eval")
    found: Problems = (
        [((*at, "judge"), f"missing; task {task} needs it")]
        if judged and not bench.get("judge")
        else []
    )
    usable = [
        *declared["files"],
        *(JUDGING if judged else ()),
        *(LM_EVAL if declared["scorer"] == "lm_eval" else ()),
    ]
    for key in (*OWN_FILES, *JUDGING, *LM_EVAL):
        if key in bench and key not in usable:
            found.append(((*at, key), f"is nothing that task {task} takes; delete it"))
    for key in (*OWN_FILES, "labels"):
        found += _missing_file((*at, key), bench.get(key))
    others = bench["other_judges"] if isinstance(bench.get("other_judges"), list) else []
    for judge in (bench.get("judge"), *others):
        found += _own_judge(name, judge, raw)
    return found + _repeated((*at, "other_judges"), [bench.get("judge"), *others], "judge")


def _own_judge(name: str, judge: Any, raw: dict[str, Any]) -> Problems:
    """A judge that is a model under test would grade itself."""
    endpoints, models = (
        raw[key] if isinstance(raw.get(key), dict) else {} for key in ("endpoints", "models")
    )
    endpoint: Any = endpoints.get(judge) if isinstance(judge, str) else None
    found: Problems = []
    for key, model in models.items() if isinstance(endpoint, dict) else ():
        ours, its = (
            value.get("path") if isinstance(value, dict) else None for value in (model, endpoint)
        )
        same = its and ours and resolve(str(its)).resolve() == resolve(str(ours)).resolve()
        if same or (
            isinstance(model, dict)
            and endpoint.get("model")
            and model.get("hub") == endpoint["model"]
        ):
            text = f"{judge} is the model {key!r}, which is under test: it would grade itself; take another judge"
            found.append((("benchmarks", name, "judge"), text))
    return found


def _missing_file(at: tuple[Any, ...], value: Any) -> Problems:
    if isinstance(value, str) and not resolve(value).exists():
        return [(at, f"no such file: {value} (paths are relative to the checkout unless absolute)")]
    return []


def _repeated(at: tuple[Any, ...], values: Any, what: str) -> Problems:
    values = values if isinstance(values, list) else []
    twice = sorted({str(v) for v in values if values.count(v) > 1})
    return [(at, f"{what} {v} is listed twice; each {what} once") for v in twice]
