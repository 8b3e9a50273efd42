"""What was trained on, from the corpora's cards: for the report, the table and results.json."""

import json
from pathlib import Path
from typing import Any

SHOWN = 1200  # letters of an example
DIVERSITY = ("type_token", "distinct_2", "distinct_3", "over_words", "mean_similarity", "vendi")


def corpora(inputs: dict[str, Path]) -> list[dict[str, Any]]:
    """A row for each input `corpus-NAME`: sizes, diversity, what was rejected and paid, an example, the balance.

    `balance` has the measures in which a matched corpus differs from its counterpart `against`, None for one that is
    matched to none.
    """
    found = []
    for role, place in inputs.items():
        if not role.startswith("corpus-"):
            continue
        card = json.loads((place / "card.json").read_text(encoding="utf-8"))
        counts, beside = card["counts"], place / "balance.json"
        balance = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else None
        found.append(
            {
                "name": role.removeprefix("corpus-"),
                **{key: card[key] for key in ("documents", "held_out", "words", "tokens", "tokens_trimmed")},
                "median_words": card["length"]["words"]["50%"],
                **{key: card["diversity"].get(key) for key in DIVERSITY},
                "calls": counts.get("calls"),
                "cost": counts.get("cost"),
                "rejected": {
                    key.removeprefix("rejected_"): n for key, n in counts.items() if key.startswith("rejected_")
                },
                "against": balance[0]["against"] if balance else None,
                "balance": [row for row in balance if row["verdict"] == "differs"] if balance else None,
                "compared": len(balance) if balance else 0,
                "example": card["examples"][0]["text"][:SHOWN] if card["examples"] else "",
            }
        )
    return found
