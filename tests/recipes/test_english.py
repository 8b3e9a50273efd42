"""The texts that the toy model is pretrained on."""

import ast
import sysconfig
from pathlib import Path

from recipes.tiny_llama import _statements

SOURCE = """
if True:
    def first(): "in an if"
else:
    class second: "in an else"
def third():
    "the outer"
    try:
        def fourth(): "deep"
    except ValueError:
        async def fifth(): "in a handler"
    match 1:
        case 1:
            class sixth: "in a case"
    lambda: [x for x in (1, 2)]
"""


def test_definitions_come_in_the_order_of_ast_walk() -> None:
    """Another order would be other weights of the toy."""
    definitions = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    standard = Path(sysconfig.get_path("stdlib"))
    for text in (SOURCE, *((standard / name).read_text() for name in ("ast.py", "typing.py"))):
        tree = ast.parse(text)
        expected = [node for node in ast.walk(tree) if isinstance(node, definitions)]
        assert [node for node in _statements(tree) if isinstance(node, definitions)] == expected
