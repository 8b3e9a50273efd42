"""Presets of endpoints (presets.yaml): what an endpoint of a known provider needs not say."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from core.paths import ROOT
from core.strict_yaml import read_yaml

FILLED = ("base_url", "key_env")


@cache
def presets() -> Mapping[str, Mapping[str, Any]]:
    """The presets by their names."""
    content: dict[str, dict[str, Any]] = read_yaml(ROOT / "study/spec/presets.yaml")[0]
    return content


def fill_in_presets(raw: Mapping[str, Any]) -> None:
    """Give each endpoint of a study file what its preset says, where it doesn't say it itself."""
    endpoints = raw.get("endpoints")
    for endpoint in endpoints.values() if isinstance(endpoints, dict) else ():
        if not isinstance(endpoint, dict) or endpoint.get("served_by", "url") != "url":
            continue
        name = endpoint.get("preset")
        preset = presets().get(name) if isinstance(name, str) else None
        if not preset:
            continue
        for key in FILLED:
            if key in preset:
                endpoint.setdefault(key, preset[key])
        request = endpoint.get("request", {})
        if isinstance(request, dict):
            endpoint["request"] = {**preset["request"], **request}


def asks_for_no_key(endpoint: Mapping[str, Any]) -> bool:
    """Whether an endpoint is of a server of one's own, which asks for no key."""
    name = endpoint.get("preset")
    return isinstance(name, str) and name in presets() and "key_env" not in presets()[name]
