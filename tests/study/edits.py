"""Edits that a study file, its files, its folder and its commands allow, by name.

Each takes the study and a number that selects among its variants. An edit that does not apply
changes nothing.
"""

import shutil
from collections.abc import Callable
from typing import Any

import yaml

from study.cli import main
from tests.study.sequences import EditedStudy

Edit = Callable[[EditedStudy, int], None]
EDITS: dict[str, Edit] = {}


def edit(function: Edit) -> Edit:
    EDITS[function.__name__] = function
    return function


def _renamed(mapping: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if key == old else key: value for key, value in mapping.items()}


def _replace(value: Any, old: str, new: str, keys: tuple[str, ...]) -> Any:
    """`value` with the text `old` under one of `keys`, or in a list there, replaced."""
    if isinstance(value, list):
        return [_replace(item, old, new, keys) for item in value]
    if not isinstance(value, dict):
        return value
    result = {}
    for key, item in value.items():
        if key in keys and item == old:
            result[key] = new
        elif key in keys and isinstance(item, list):
            result[key] = [new if name == old else name for name in item]
        else:
            result[key] = _replace(item, old, new, keys)
    return result


def _rename(study: EditedStudy, section: str, n: int, keys: tuple[str, ...]) -> None:
    names = sorted(study.spec[section])
    old, new = names[n % len(names)], f"renamed{study.count}"
    study.count += 1
    study.spec = _replace(study.spec, old, new, keys)
    study.spec[section] = _renamed(study.spec[section], old, new)


@edit
def rename_arm(study: EditedStudy, n: int) -> None:
    _rename(study, "arms", n, ("treatment", "control"))


@edit
def rename_corpus(study: EditedStudy, n: int) -> None:
    _rename(study, "corpora", n, ("midtrain", "documents", "matched_to"))


@edit
def rename_model(study: EditedStudy, n: int) -> None:
    _rename(study, "models", n, ("start",))


@edit
def rename_benchmark(study: EditedStudy, n: int) -> None:
    _rename(study, "benchmarks", n, ("benchmarks", "decontaminate_against"))


@edit
def rename_endpoint(study: EditedStudy, n: int) -> None:
    _rename(study, "endpoints", n, ("writer", "judge"))


@edit
def rename_study(study: EditedStudy, n: int) -> None:
    study.spec["study"] = f"study{n}"


@edit
def swap_names_of_corpora(study: EditedStudy, n: int) -> None:
    first, second = list(study.spec["corpora"])[:2]
    for old, new in ((first, "swapping"), (second, first), ("swapping", second)):
        study.spec = _replace(study.spec, old, new, ("midtrain", "documents", "matched_to"))
        study.spec["corpora"] = _renamed(study.spec["corpora"], old, new)


@edit
def reorder(study: EditedStudy, n: int) -> None:
    for section in ("arms", "corpora", "benchmarks", "models", "endpoints"):
        study.spec[section] = dict(reversed(study.spec[section].items()))
    study.spec["seeds"] = study.spec["seeds"][::-1]


@edit
def add_seed(study: EditedStudy, n: int) -> None:
    study.spec["seeds"] = sorted({*study.spec["seeds"], n})


@edit
def remove_seed(study: EditedStudy, n: int) -> None:
    study.spec["seeds"] = study.spec["seeds"][1:] or study.spec["seeds"]


@edit
def add_dose(study: EditedStudy, n: int) -> None:
    study.spec["sft"]["doses"] = sorted({*study.spec["sft"]["doses"], n})


@edit
def doses_of_an_arm(study: EditedStudy, n: int) -> None:
    arm = study.spec["arms"][sorted(study.spec["arms"])[n % len(study.spec["arms"])]]
    tunings = [step for step in arm.get("train", []) if "sft" in step]
    (tunings[-1] if tunings else arm)["doses"] = [0]


@edit
def spell_out_an_arm(study: EditedStudy, n: int) -> None:
    """`train` in place of the short form: the same trainings."""
    name = sorted(study.spec["arms"])[n % len(study.spec["arms"])]
    arm = study.spec["arms"][name]
    if "train" in arm:
        return
    steps = []
    if "midtrain" in arm:
        keys = {"midtrain": "documents", "recipe": "recipe"}
        steps.append({new: arm[old] for old, new in keys.items() if old in arm})
    if study.spec.get("sft"):
        steps.append({"sft": "sft"} | {key: arm[key] for key in ("doses",) if key in arm})
    study.spec["arms"][name] = {"start": arm["start"], "train": steps}


@edit
def add_chain(study: EditedStudy, n: int) -> None:
    """A longer chain, which begins as another arm or not."""
    first, second = sorted(study.spec["corpora"])[:2]
    chains: list[list[dict[str, Any]]] = [
        [{"documents": first}, {"sft": "sft"}, {"documents": second}],
        [{"documents": first}, {"sft": "sft"}, {"documents": second}, {"sft": "sft"}],
        [{"sft": "sft"}, {"documents": first}],
        [{"documents": second}, {"documents": first}, {"sft": "sft"}, {"sft": "sft"}],
    ]
    start = sorted(study.spec["models"])[0]
    study.spec["arms"][f"chain{n}"] = {"start": start, "train": chains[n % len(chains)]}


@edit
def add_untrained_arm(study: EditedStudy, n: int) -> None:
    study.spec["arms"][f"plain{n}"] = {"start": sorted(study.spec["models"])[0]}


@edit
def add_arm_with_a_recipe_of_one_stem(study: EditedStudy, n: int) -> None:
    recipe = study.path(f"recipes{n}/mid.yaml")
    study.write(
        f"recipes{n}/mid.yaml", f"seq_len: 64\nepochs: 1\nlr: {n + 2}.0e-3\ntokens_per_step: 64\n"
    )
    arm = dict(next(arm for arm in study.spec["arms"].values() if arm.get("midtrain")))
    study.spec["arms"][f"recipe{n}"] = arm | {"recipe": recipe}


@edit
def name_the_studys_own_recipe(study: EditedStudy, n: int) -> None:
    for arm in study.spec["arms"].values():
        if arm.get("midtrain"):
            arm.setdefault("recipe", study.spec["midtrain"]["recipe"])


@edit
def add_model_and_arm(study: EditedStudy, n: int) -> None:
    study.spec["models"][f"other{n}"] = {"path": study.path("models/two")}
    corpus = sorted(study.spec["corpora"])[n % len(study.spec["corpora"])]
    study.spec["arms"][f"other{n}"] = {"start": f"other{n}", "midtrain": corpus}


@edit
def swap_weights(study: EditedStudy, n: int) -> None:
    study.write("models/one/model.safetensors", f"weights {n}")


@edit
def move_model(study: EditedStudy, n: int) -> None:
    for model in study.spec["models"].values():
        if model["path"] == study.path("models/one"):
            shutil.copytree(model["path"], study.path(f"moved{n}"), dirs_exist_ok=True)
            model["path"] = study.path(f"moved{n}")


@edit
def writer_model(study: EditedStudy, n: int) -> None:
    corpus = sorted(study.spec["corpora"])[0]
    study.spec["endpoints"][study.spec["corpora"][corpus]["writer"]]["model"] = f"writer{n}"


@edit
def judge_model(study: EditedStudy, n: int) -> None:
    judge = next(bench["judge"] for bench in study.spec["benchmarks"].values() if "judge" in bench)
    study.spec["endpoints"][judge]["model"] = f"judge{n}"


@edit
def endpoint_limits(study: EditedStudy, n: int) -> None:
    for endpoint in study.spec["endpoints"].values():
        limits = {"prompt_price": float(n), "requests_per_minute": 10.0 + n}
        endpoint.update(limits | {"base_url": f"http://127.0.0.1:{n + 1}/v1"})
    study.spec["concurrency"] = n + 1


@edit
def corpus_temperature(study: EditedStudy, n: int) -> None:
    study.spec["corpora"][sorted(study.spec["corpora"])[0]]["temperature"] = 0.5 + n / 10


@edit
def shards(study: EditedStudy, n: int) -> None:
    for corpus in study.spec["corpora"].values():
        corpus["shards"] = min(n + 1, corpus["documents"])


def _change_recipe(study: EditedStudy, name: str, **changes: Any) -> None:
    path = study.folder / name
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


@edit
def learning_rate(study: EditedStudy, n: int) -> None:
    _change_recipe(study, ("mid.yaml", "sft.yaml")[n % 2], lr=0.01 + n / 100)


@edit
def how_a_recipe_runs(study: EditedStudy, n: int) -> None:
    _change_recipe(study, "mid.yaml", micro_batch_size=n + 1, checkpoint_minutes=n + 10)


@edit
def comments(study: EditedStudy, n: int) -> None:
    path = study.folder / "sft.yaml"
    path.write_text(f"# comment {n}\n" + path.read_text())


@edit
def sft_data(study: EditedStudy, n: int) -> None:
    study.write_rows("chat.jsonl", {"prompt": f"Hello {n}?", "response": "Yes."})


@edit
def questions(study: EditedStudy, n: int) -> None:
    path = study.folder / "questions.jsonl"
    path.write_text(path.read_text().replace("A hen", f"A hen{n}"))


@edit
def rubric(study: EditedStudy, n: int) -> None:
    path = study.folder / "dimensions.jsonl"
    path.write_text(path.read_text().replace("Is it", f"Is it{n}"))


@edit
def items(study: EditedStudy, n: int) -> None:
    path = study.folder / "items.jsonl"
    path.write_text(path.read_text().replace("A hen", f"A cow{n}"))


@edit
def add_benchmark(study: EditedStudy, n: int) -> None:
    name = f"items{n}.jsonl"
    item = {"id": "i", "question": f"A pig {n}?", "choices": ["kind", "not"], "answer": 0}
    study.write_rows(name, item)
    study.spec["benchmarks"][f"added{n}"] = {
        "task": "concern_for_animals",
        "items": study.path(name),
    }


@edit
def remove_benchmark(study: EditedStudy, n: int) -> None:
    used = {name for contrast in study.spec["contrasts"] for name in contrast["benchmarks"]}
    free = sorted(set(study.spec["benchmarks"]) - used)
    for name in free[: 1 if free else 0]:
        del study.spec["benchmarks"][name]
        for corpus in study.spec["corpora"].values():
            if name in corpus.get("decontaminate_against", []):
                corpus["decontaminate_against"].remove(name)


@edit
def decontaminate(study: EditedStudy, n: int) -> None:
    names = sorted(study.spec["benchmarks"])[: n + 1]
    study.spec["corpora"][sorted(study.spec["corpora"])[0]]["decontaminate_against"] = names


@edit
def epochs_and_temperature(study: EditedStudy, n: int) -> None:
    bench = next(bench for bench in study.spec["benchmarks"].values() if "judge" in bench)
    bench.update(epochs=n + 1, temperature=n / 10)


@edit
def margin_family_and_exclusions(study: EditedStudy, n: int) -> None:
    study.spec["contrasts"][0].update(margin=0.05 + n / 100, family=f"family{n}")


@edit
def max_model_len(study: EditedStudy, n: int) -> None:
    study.spec.setdefault("engine", {})["max_model_len"] = 512 * (n + 1)


@edit
def engine_options(study: EditedStudy, n: int) -> None:
    options = {"quantization": "fp8"} if n % 2 else {"gpu_memory_utilization": 0.5 + n / 10}
    study.spec.setdefault("engine", {})["options"] = options


@edit
def move_runs_folder(study: EditedStudy, n: int) -> None:
    moved = study.folder / f"elsewhere{study.count}/runs"
    study.count += 1
    if study.runs.exists():
        moved.parent.mkdir()
        shutil.move(study.runs, moved)
        study.runs = moved


@edit
def prune_orphans(study: EditedStudy, n: int) -> None:
    file = study.folder / "study.yaml"
    if (study.runs / study.spec["study"]).exists():
        study.write("study.yaml", yaml.safe_dump(study.spec, sort_keys=False))
        words = ["prune", str(file), "--runs", str(study.runs), "--orphans", "--delete"]
        assert main(words) in (0, 2)


@edit
def back_to_the_first(study: EditedStudy, n: int) -> None:
    study.restore(study.first)


@edit
def nothing(study: EditedStudy, n: int) -> None:
    """Run again."""
