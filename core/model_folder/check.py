"""All that trainings and evaluations refuse of a start model, asked without loading its weights."""

from pathlib import Path

from core.model_folder.chat import Chat
from core.model_folder.config import CHAT_DATE, read_config
from core.model_folder.tokenizer import load_tokenizer, open_tokenizer
from core.model_folder.weights import check_weights


def check_start_model(
    folder: Path, trains: bool, chats: bool, template: str = "", date: str = CHAT_DATE
) -> None:
    """Raise UserError with what is wrong with a model folder.

    Args:
        folder: A Hugging Face model folder.
        trains: Whether it is trained. Otherwise it is evaluated as it is.
        chats: Whether its chat template is read: by a training on conversations, or for prompts.
        template: File with a chat template in place of its own; "" for its own.
        date: Of `core.model_folder.chat.Chat`.
    """
    if trains:
        check_weights(folder, read_config(folder))
    if trains or chats:
        tokenizer = load_tokenizer(folder) if trains else open_tokenizer(folder)
    if chats:
        text = Path(template).read_text(encoding="utf-8") if template else None
        Chat(tokenizer, date, text).check(trained=trains)
