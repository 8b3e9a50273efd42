"""The report in a browser: widths of a phone and a screen, accessibility, paper. Needs Chromium."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from analysis import sensitivity
from analysis.run import run
from tests.analysis.small_study import study

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000")
AXE = "axe-core@4.14.1"
# The frame has the width of a screen; the browser's own window may be no narrower than 500 px.
FRAME = """<!doctype html><meta charset="utf-8"><pre id="out"></pre>
<iframe id="page" width="{width}" height="900" style="border:0" srcdoc="{page}"></iframe>
<script>
page.onload = async () => {{
  const view = page.contentWindow, root = page.contentDocument.documentElement;
  const seen = {{ width: root.scrollWidth, violations: [] }};
  seen.matrix = page.contentDocument.querySelector("table.matrix").getBoundingClientRect().top;
  for (const open of [false, true]) {{
    for (const part of page.contentDocument.querySelectorAll("details")) part.open ||= open;
    if (view.axe) {{
      const result = await view.axe.run(page.contentDocument);
      seen.violations.push(...result.violations.map((of) => `${{of.id}}: ${{of.nodes[0].html}}`));
    }}
  }}
  const table_of = (name) => page.contentDocument.querySelector(`table[aria-label="${{name}}"]`);
  const contrasts = table_of("Contrasts");
  contrasts.tHead.rows[0].cells[2].querySelector("button").click();
  const column = (index) =>
    [...contrasts.tBodies[0].rows].map((row) => row.cells[index].textContent.trim());
  seen.sorted = column(2);
  contrasts.tHead.rows[0].cells[3].querySelector("button").click();
  seen.intervals = column(3);
  const choices = table_of("Contrasts under other choices");
  const input = choices.parentElement.previousElementSibling.querySelector("input");
  input.value = "SEED left";
  input.dispatchEvent(new view.Event("input"));
  const rows = [...choices.tBodies[0].rows].filter((row) => row.getClientRects().length);
  seen.filtered = rows.map((row) => row.cells[1].textContent);
  out.textContent = "RESULT" + JSON.stringify(seen) + "END";
}};
</script>"""

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    context = study(tmp_path_factory.mktemp("study"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "RESAMPLES", 50)
        run(context)
    return context.folder / "report.html"


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checker's script, by npm; empty where that has no network."""
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if not npm or subprocess.run([npm, "pack", AXE], cwd=folder, check=False).returncode:
        return ""
    (archive,) = folder.glob("*.tgz")
    shutil.unpack_archive(archive, folder)
    return (folder / "package/axe.min.js").read_text(encoding="utf-8")


def look(report: Path, folder: Path, width: int, script: str) -> dict[str, Any]:
    """What a browser of `width` px says of the page."""
    page = report.read_text(encoding="utf-8")
    page = page.replace("</body>", f"<script>{script}</script></body>")
    frame = folder / f"frame-{width}.html"
    frame.write_text(FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
    command = [
        CHROMIUM,
        *FLAGS,
        f"--window-size={width + 100},900",
        "--dump-dom",
        f"file://{frame}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text = html.unescape(done.stdout[done.stdout.index("RESULT{") + 6 :])
    result: dict[str, Any] = json.loads(text[: text.index("END")])
    return result


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_has_no_violation(
    report: Path, axe: str, tmp_path: Path, width: int
) -> None:
    seen = look(report, tmp_path, width, axe)
    assert seen["width"] <= width, "the page scrolls sideways"
    assert seen["matrix"] < 2 * 844
    assert seen["violations"] == []
    points = [float(text.replace("−", "-")) for text in seen["sorted"]]
    assert points == sorted(points) != sorted(points, reverse=True)
    lows = [float(text[1:].split()[0].replace("−", "-")) for text in seen["intervals"]]
    assert lows == sorted(lows) and seen["intervals"] != sorted(seen["intervals"])
    assert set(seen["filtered"]) == {"one seed left out"}
    if not axe:
        pytest.skip("axe-core could not be downloaded: only widths were checked")


def test_on_paper_nothing_is_folded_and_no_page_is_empty(report: Path, tmp_path: Path) -> None:
    pdftotext = shutil.which("pdftotext")
    if not pdftotext:
        pytest.skip("no pdftotext on this machine")
    paper = tmp_path / "paper.pdf"
    command = [CHROMIUM, *FLAGS, "--no-pdf-header-footer", f"--print-to-pdf={paper}"]
    subprocess.run([*command, f"file://{report}"], capture_output=True, check=True)
    done = subprocess.run([pdftotext, "-layout", paper, "-"], capture_output=True, check=True)
    pages = done.stdout.decode().removesuffix("\f").split("\f")
    assert all(len(page.strip()) > 50 for page in pages), [len(page) for page in pages]
    text = " ".join(done.stdout.decode().split())
    # a figure that is folded on a screen, a badge; then a table's last column
    for shown in (
        "concern: animal minus urban, percentage points",
        "q011",
        "higher (better)",
    ):
        assert shown in text, shown
    # "Paper's p", in one line or in two
    assert re.search(r"Holm p +Verdict +(Paper’s )?p$", done.stdout.decode(), re.M)
    assert "this figure in words" not in text
    # the headers of a table over two pages stand on both
    beginnings = [page.strip().splitlines()[0] for page in pages]
    assert not any("without one" in line or "left out" in line for line in beginnings)
