"""All that trainings and evaluations refuse of a start model, asked without loading its weights."""

from pathlib import Path

from core.errors import UserError
from core.files import read_text
from core.model_folder.chat import Chat, read_prompt
from core.model_folder.config import CHAT_DATE, end_token_ids, read_config, read_json
from core.model_folder.config_values import check_pad_token
from core.model_folder.tokenizer import load_tokenizer, open_tokenizer
from core.model_folder.weights import check_weights


def check_start_model(
    folder: Path,
    trains: bool,
    chats: bool,
    template: str = "",
    date: str = CHAT_DATE,
    system: str = "",
    prefill: str = "",
    tokenizer: Path | None = None,
) -> None:
    """Raise UserError with what is wrong with a model folder.

    Args:
        folder: A Hugging Face model folder.
        trains: Whether it is trained. Otherwise it is evaluated as it is.
        chats: Whether its chat template is read: by a training on conversations, or for prompts.
        template: File with a chat template in place of its own; "" for its own.
        date: Of `core.model_folder.chat.Chat`.
        system: File with the system prompt of an evaluation; "" where it has none.
        prefill: File with the beginning of its answers; "" where it has none.
        tokenizer: Model folder whose tokenizer is used in place of its own.
    """
    if trains:
        config = read_config(folder)
        check_weights(folder, config)
        end_token_ids(folder)
    if trains or chats:
        source = tokenizer or folder
        opened = load_tokenizer(source) if trains else open_tokenizer(source)
    if trains:
        check_pad_token(folder / "config.json", config)
    if chats:
        text = read_text(Path(template)) if template else None
        prompts = [read_prompt(path or None) for path in (system, prefill)]
        Chat(opened, date, text, *prompts).check(trained=trains)


def check_reward_model(folder: Path) -> None:
    """Raise UserError where config.json is not that of a sequence classifier with one output."""
    file = folder / "config.json"
    config = read_json(file)
    named = config.get("architectures") or []
    outputs = len(config.get("id2label") or {}) or config.get("num_labels", 2)
    what = ""
    if named and not str(named[0]).endswith("ForSequenceClassification"):
        what = f"is a {named[0]}, and a reward model is a sequence classifier"
    elif outputs != 1:
        what = f"has {outputs} outputs, and a reward is one number"
    if what:
        raise UserError(where=str(file), what=what, fix="name a reward model")
