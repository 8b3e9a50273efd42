"""How a request is written for an endpoint: providers differ in the parameters that they take."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RequestForm:
    """What of a request's form changes no answer.

    Attributes:
        max_tokens_key: The name of the limit on completion tokens.
        seed: Whether the sampling seed is sent.
    """

    max_tokens_key: str = "max_tokens"
    seed: bool = True

    def parameters(self, request: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request, without model and messages.

        Args:
            request: What identifies it: messages, seed, temperature, max_tokens ...
            model: What identifies the model. Its `request` may hold `temperature` (None: it is not
                sent) and `extra_body` (sent as it is).
        """
        body = {name: value for name, value in request.items() if name not in ("model", "messages")}
        changes = model.get("request", {})
        if not self.seed:
            body.pop("seed", None)
        if "temperature" in changes:
            body.pop("temperature", None)
        if "max_tokens" in body:
            body[self.max_tokens_key] = body.pop("max_tokens")
        return {**body, "stream": False, **changes.get("extra_body", {})}


PLAIN = RequestForm()
