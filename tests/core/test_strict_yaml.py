"""What YAML allows and a study does not: an error with what to do, never a traceback."""

from pathlib import Path

import pytest
import yaml

from core.errors import UserError
from core.paths import ROOT
from core.strict_yaml import MAX_BYTES, MAX_DEPTH, YamlLoader, parse_yaml, read_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)

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


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        (LAUGHS, 5, "its aliases stand for more than 100000 values"),
        ("a: 1\nb: " + "[" * 60 + "]" * 60, 2, f"more than {MAX_DEPTH} levels"),
        ("a: 1\nb: " + "[" * 100_000, None, f"not valid YAML: more than {MAX_DEPTH} levels"),
        ("a: 1\nb: .inf\n", 2, ".inf is no finite number"),
        ("a: 1\nb: -.Inf\n", 2, "-.Inf is no finite number"),
        ("a: 1\nb: .NaN\n", 2, ".NaN is no finite number"),
        ("a: 1\nb: 1e999\n", 2, "1e999 is no finite number"),
        ("a: 1\nb: 0x" + "f" * 50, 2, "a number of 52 digits"),
        (f"a: {2**63 - 1}\nb: {2**63}\n", 2, f"the number {2**63} is beyond 64 bits"),
        (f"a: 1\nb: {-(2**63)}\n", 2, f"the number {-(2**63)} is beyond 64 bits"),
        ("a: 1\nb: 0x" + "f" * 16, 2, "the number 0xffffffffffffffff is beyond 64 bits"),
        ("a: 1\nb: 99_999_999_999_999_999_999", 2, "the number 99_999_999_999_999_999_999 is"),
        ("a: 1\nnull: 1\n", 2, "'null' is used as a key"),
        ("a: 1\ntrue: 1\n", 2, "'true' is used as a key"),
        ("a: 1\n1.5: 1\n", 2, "'1.5' is used as a key"),
        ("a: 1\nb: !foo x\n", 2, "has the tag '!foo'"),
        ("a: 1\nb: &b\n  - *b\n", 2, "not valid YAML: an anchor contains itself"),
        ("a: 1\nb: a\0b\n", 2, "not valid YAML"),
        ("a: 1\nb: \udcff\n", 2, "not UTF-8"),
    ],
)
def test_what_a_file_of_settings_does_not_hold_is_refused_by_its_line(
    text: str, line: int | None, what: str, tmp_path: Path
) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as error:
        read_yaml(path)
    (problem,) = error.value.problems
    assert problem.where == (f"{path}:{line}" if line else str(path))
    assert problem.what.startswith(what) and problem.fix


def test_a_large_file_and_what_is_no_file_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("a: 1\n" + "# more\n" * (MAX_BYTES // 7 + 1))
    for file, what in (
        (path, "larger than 512 KiB"),
        (tmp_path, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(UserError, match=what):
            read_yaml(file)


def test_times_types_and_numbers_with_zeros_in_front_are_texts(tmp_path: Path) -> None:
    """YAML 1.1 reads them as numbers of base 60 and 8."""
    path = tmp_path / "a.yaml"
    texts = ["3090:4", "1:30:00", "16:00", "0042", "08"]
    numbers = {"0": 0, "-7": -7, "+3": 3, "10_000": 10_000, "0x1f": 31}
    path.write_text("".join(f"- {word}\n" for word in [*texts, *numbers]))
    assert read_yaml(path)[0] == [*texts, *numbers.values()]


def test_libyaml_reads_every_file_of_the_kit_as_python_does() -> None:
    rooms = ("studies", "recipes", "sdf", "eval", "analysis", "slurm", "tests")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.yaml")]
    assert len(files) > 50
    for path in files:
        text = path.read_text(encoding="utf-8")
        value, node = parse_yaml(text, path.name)
        loader = YamlLoader(text)
        expected = loader.get_single_node()
        assert yaml.serialize(node) == yaml.serialize(expected)
        assert value == loader.construct_document(expected)


def test_what_libyaml_does_not_read_is_read_or_refused_by_python(tmp_path: Path) -> None:
    # A mark of byte order within a line is a character to Python, and none to libyaml.
    assert parse_yaml("a: 1\n\ufeffb: 2", "")[0] == {"a": 1, "\ufeffb": 2}
    with pytest.raises(UserError, match="found character '@' that cannot start any token"):
        parse_yaml("a: @b", "study.yaml")
