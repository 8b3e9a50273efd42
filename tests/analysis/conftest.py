"""Whether an analysis draws its figures."""

import pytest

from analysis import figures


@pytest.fixture
def drawn() -> None:
    """Requested by tests that look at figures, which take most of an analysis' time."""


@pytest.fixture
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure is drawn in a test that does not request `drawn`."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(figures, "draw", lambda *_: {})
