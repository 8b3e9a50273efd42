"""What YAML allows and a study does not: an error with what to do, never a traceback."""

from pathlib import Path

import pytest

from core.errors import UserError
from core.strict_yaml import read_yaml

ODD = {
    "a placeholder that was not filled": "seeds: {{ seeds }}\n",
    "a list as a key": "? [a, b]\n: 3\n",
    "a mapping as a key": "{a: b}: 3\n",
    "a tag of one's own": "study: !foo x\n",
    "a tag of Python": "study: !!python/name:os.system x\n",
    "a set": "seeds: !!set {1, 2}\n",
    "bytes": "study: !!binary aGk=\n",
    "a number that is none": "seeds: !!int abc\n",
    "a number too long": f"seeds: {'9' * 5000}\n",
    "a merge of no mapping": "study: {<<: 3}\n",
    "an anchor in itself": "study: &a [*a]\n",
    "a control character": "study: a\0b\n",
    "a list that does not end": "seeds: [0\n",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_yaml_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_yaml(path)
    (problem,) = error.value.problems
    assert problem.where.startswith(str(path)) and problem.what and problem.fix
    assert "\n" not in str(error.value)
