"""Each arm as a chain of trainings: the short form (`midtrain`, `sft`) expands to it on load."""

from dataclasses import replace

from study.spec.schema import Arm, Sft, Study
from study.spec.steps import STUDY_SFT, Step

SHORT_FORM = ("midtrain", "recipe", "question_variant", "sft", "doses")


def with_chains(study: Study) -> Study:
    """The study with `train` in every arm that starts from a model, and an arm for each named step.

    The keys of the short form are gone. `load_study` returns studies in this form.
    """
    arms: dict[str, Arm] = {}
    for name, arm in study.arms.items():
        if arm.start is None:
            arms[name] = arm
            continue
        steps = _short_form(study, arm) if arm.train is None else arm.train
        unnamed = [replace(step, arm=None) for step in steps]
        arms[name] = replace(arm, train=unnamed, **dict.fromkeys(SHORT_FORM))
        for number, step in enumerate(steps, 1):
            if step.arm:
                arms[step.arm] = Arm(start=arm.start, train=unnamed[:number])
    return replace(study, arms=arms)


def _short_form(study: Study, arm: Arm) -> list[Step]:
    steps = []
    if arm.midtrain:
        steps.append(
            Step(documents=arm.midtrain, recipe=arm.recipe, question_variant=arm.question_variant)
        )
    if arm.sft or study.sft:
        steps.append(Step(sft=arm.sft or STUDY_SFT, doses=arm.doses))
    return steps


def steps_of(arm: Arm) -> list[Step]:
    """The steps of an arm; none where somebody else has trained it."""
    return arm.train or []


def sft_of(study: Study, step: Step) -> Sft:
    """The instruction tuning of a step with `sft`, with the step's own settings in it."""
    assert step.sft
    unnamed = study.sft if step.sft == STUDY_SFT else None
    sft = unnamed or study.sfts[step.sft]
    return replace(sft, replay=step.replay) if step.replay else sft


def dose_step(arm: Arm) -> int | None:
    """The position of the step whose doses are those of the arm; None without an SFT.

    It is the step with several doses, else the last SFT.
    """
    tunings = [number for number, step in enumerate(steps_of(arm)) if step.sft]
    several = [number for number in tunings if len(steps_of(arm)[number].doses or []) > 1]
    return next(iter([*several, *tunings[-1:]]), None)


def dose_of(study: Study, arm: Arm, number: int, dose: int) -> int:
    """The rows of instruction data of the SFT at position `number`, in the arm at `dose`."""
    if number == dose_step(arm):
        return dose
    step = steps_of(arm)[number]
    return max(step.doses or sft_of(study, step).doses)


def corpora_of(study: Study, arm: Arm, with_prompts: bool = True) -> list[str]:
    """The corpora that an arm trains on, replayed ones too, in the order of its steps.

    with_prompts: also those that are prompts of reinforcement learning.
    """
    names: list[str] = []
    for number, step in enumerate(steps_of(arm)):
        if step.documents:
            names.append(step.documents)
        elif step.rl:
            names += [study.rl[step.rl].prompts] if with_prompts else []
        elif step.sft and (replayed := replay_corpus(study, arm, number)):
            names.append(replayed)
    return list(dict.fromkeys(names))


def replay_corpus(study: Study, arm: Arm, number: int) -> str | None:
    """The corpus that the SFT at position `number` replays; None where it replays none."""
    step = steps_of(arm)[number]
    if not sft_of(study, step).replay:
        return None
    before = [step.documents for step in steps_of(arm)[:number] if step.documents]
    return step.replay_corpus or (before[-1] if before else None)


def replicates_of(study: Study, arm: Arm) -> int:
    """In how many replicates an arm's corpora are written; of several the fewest above 1.

    Runs that share a replicate of any of them are not independent.
    """
    counts = [study.corpora[name].replicates for name in corpora_of(study, arm)]
    return min((count for count in counts if count > 1), default=1)


def is_seeded(study: Study, name: str, dose: int) -> bool:
    """Whether an arm's weights at a dose depend on the training seed."""
    arm = study.arms[name]
    seeded = False
    for number, step in enumerate(steps_of(arm)):
        if step.average:
            seeded = False
        elif step.merge:
            seeded = seeded or is_seeded(study, step.merge, only_dose(study, step.merge))
        else:
            seeded = seeded or not step.sft or dose_of(study, arm, number, dose) > 0
    return seeded


def only_dose(study: Study, name: str) -> int:
    """The dose of an arm that another merges with: its largest, where it has several."""
    arm = study.arms[name]
    number = dose_step(arm)
    if number is None:
        return 0
    step = steps_of(arm)[number]
    return max(step.doses or sft_of(study, step).doses)
