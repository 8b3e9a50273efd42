"""What of a study file changes how a cell renders conversations."""

from core.model_folder.config import CHAT_DATE
from study.spec.schema import Study
from study.spec.sources import Source


def chat_date(study: Study) -> dict[str, str]:
    """The setting `chat_date` of a cell; {} by default, so that such a cell stays the same."""
    return {} if study.chat_date == CHAT_DATE else {"chat_date": study.chat_date}


def chat_files(study: Study, start: str) -> dict[str, Source]:
    """The chat template that the study file gives a start model, as a file of a cell."""
    template = study.models[start].chat_template
    return {"chat_template": {"path": template}} if template else {}
