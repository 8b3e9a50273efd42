"""What a part of a study may take, and whether it takes more."""

from collections.abc import Mapping
from dataclasses import dataclass

TIGHTER = 0.98  # of what would have fitted: the next search, where a forecast exceeds a limit


@dataclass(frozen=True)
class Limits:
    """What may be used from now on: GPUs at a time for so many hours, and limits of `--budget`."""

    gpus: int
    hours: float
    budget: Mapping[str, float]

    def tightened(self, amounts: Mapping[str, float], limits: "Limits") -> "Limits":
        """With less of what `amounts`, of a search with these, takes beyond `limits`."""

        def less(key: str, limit: float, now: float) -> float:
            amount = amounts.get(key, 0.0)
            return TIGHTER * now * limit / amount if amount > limit else now

        budget = {key: less(key, limits.budget[key], now) for key, now in self.budget.items()}
        return Limits(self.gpus, less("hours", limits.hours, self.hours), budget)


def exceeded(amounts: Mapping[str, float], limits: Limits) -> list[str]:
    """The limits that amounts are above, as options."""
    above = [f"--budget {k}" for k, limit in limits.budget.items() if amounts.get(k, 0.0) > limit]
    return above + ["--hours"] * (amounts.get("hours", 0.0) > limits.hours)


def largest_share(amounts: Mapping[str, float], limits: Limits) -> float:
    """The largest share of a limit that amounts take (`selection_cost.Forecaster.amounts`)."""
    shares = [amounts["gpu_hours"] / (limits.gpus * limits.hours)]
    shares += [amounts.get("endpoint_hours", 0.0) / limits.hours]
    shares += [amounts.get(key, 0.0) / limit for key, limit in limits.budget.items() if limit]
    return max(shares)
