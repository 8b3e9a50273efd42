"""The files of a table: LaTeX (float and tabular), CSV and Markdown."""

from pathlib import Path

from analysis.table_latex import float_file, tabular_file
from analysis.table_text import Table, to_csv, to_markdown
from core.files import write_atomically


def write_table(table: Table, folder: Path, column: str) -> None:
    """Write NAME.tex, NAME.tabular.tex, NAME.csv and NAME.md. `column`: single or double."""
    texts = {
        "tex": float_file(table, column),
        "tabular.tex": tabular_file(table, column),
        "csv": to_csv(table),
        "md": to_markdown(table),
    }
    for ending, text in texts.items():
        write_atomically(folder / f"{table.name}.{ending}", text)
