"""The rungs of the reproduction ladder: what of an arm's numbers this study has made itself."""

from study.spec.chains import corpora_of
from study.spec.schema import Study

# In order: from what somebody else has computed to what is all of this study.
RUNGS = ("logs", "weights", "documents", "anew")


def rung(study: Study, arm: str) -> str:
    """The rung that an arm's scores are from.

    logs: their scores, with our test. weights: their models, evaluated again. documents: their
    documents (a corpus that this study does not write), trained on again. anew: all of this study.
    Prompts of reinforcement learning do not count.
    """
    settings = study.arms[arm]
    if settings.scores:
        return "logs"
    if settings.checkpoints:
        return "weights"
    corpora = [study.corpora[name] for name in corpora_of(study, settings, with_prompts=False)]
    return "documents" if any(not corpus.writer for corpus in corpora) else "anew"
