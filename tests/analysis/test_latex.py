"""All tables of one study in one LaTeX document, with names that LaTeX would trip over.

pdftotext shows them as text.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from analysis.supplementary_tables import SUPPLEMENTARY_TABLES
from analysis.tables import TABLES
from tests.analysis.small_study import edit, results_of, study
from tests.analysis.test_corpora import BALANCE, CARD

NAMES = {"animal": "50 % ä_1 & $x$", "urban": "Städte #2 {~^}", "untrained": r"a\b <c> \"d\" | Zoë"}
CONTRAST = r"50 % & more_than $0 – \emph{ß}"
DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs,siunitx}
\usepackage[margin=1cm,landscape,a3paper]{geometry}
\begin{document}
%s
\input{macros}
\end{document}
"""


@pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="no pdflatex: apt-get install texlive-science lmodern"
)
def test_every_table_compiles_and_shows_the_names_as_they_are(tmp_path: Path) -> None:
    context = study(tmp_path)
    settings = context.settings
    for row in settings["rows"]:
        row["arm"] = NAMES[row["arm"]]
    first = settings["contrasts"][0] | {
        "name": CONTRAST,
        "treatment": NAMES["animal"],
        "control": NAMES["urban"],
        "margin": 0.1,
    }
    settings["contrasts"] = [first]
    settings["claim_roles"] = {
        "documents": first["treatment"],
        "qa": first["control"],
        "before_sft": 0,
        "anima": "ahb",
    }
    settings["benchmarks"]["ahb"]["other_judges"] = ["judge_2 & co"]
    for role in list(context.inputs):
        if role.endswith("-ahb"):
            edit(
                context,
                role,
                lambda frame: frame.assign(score=frame["score"].where(frame.index != 4)),
            )
            edit(
                context,
                role,
                lambda frame: frame.assign(
                    missing=frame["missing"].where(frame.index != 4, "no & grade")
                ),
            )
            other = tmp_path / f"{role}-other"
            shutil.copytree(context.inputs[role], other)
            context.inputs[f"{role}-other"] = other
            edit(context, f"{role}-other", lambda frame: frame.assign(judge="judge_2 & co"))
            mine = next(row for row in settings["rows"] if row["role"] == role)
            settings["rows"].append(mine | {"role": f"{role}-other", "judge": "judge_2 & co"})
    for corpus in ("tiere_&_co", "urban"):
        context.inputs[f"corpus-{corpus}"] = tmp_path / corpus
        (tmp_path / corpus).mkdir()
        (tmp_path / corpus / "corpus_stats.json").write_text(json.dumps(CARD))
        (tmp_path / corpus / "match.json").write_text(json.dumps(BALANCE))
        (tmp_path / corpus / "documents.jsonl").write_text(
            "".join(f'{{"text": "a {n} of b"}}\n' for n in range(9))
        )
    results_of(context)
    tables = sorted((context.folder / "tables").glob("*.tex"))
    assert {table.stem for table in tables} == {*TABLES, *SUPPLEMENTARY_TABLES}
    document = context.folder / "all.tex"
    document.write_text(
        DOCUMENT % "\n".join(rf"\input{{tables/{table.stem}}}\clearpage" for table in tables)
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", document.name]
    made = subprocess.run(
        command, cwd=context.folder, capture_output=True, text=True, errors="replace"
    )
    assert made.returncode == 0, made.stdout[-3000:]
    if shutil.which("pdftotext"):
        show = subprocess.run(
            ["pdftotext", "-layout", "all.pdf", "-"],
            cwd=context.folder,
            capture_output=True,
            text=True,
        )
        for name in (
            "50 % ä_1 & $x$",
            "Städte #2 {~^}",
            "50 % & more_than $0",
            "judge_2 & co",
            "tiere_&_co",
        ):
            assert name in show.stdout, name
