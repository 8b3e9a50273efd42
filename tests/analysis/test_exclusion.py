"""Questions that a study leaves out, by id and by pattern."""

from analysis.exclusion import excluded_ids

IDS = ["1_en", "1_hi", "2_hi", "a*b", "axb", "[1]_hi", "1\n_hi"]


def test_a_star_stands_for_any_letters_and_nothing_else_is_special() -> None:
    assert excluded_ids(IDS, ["*_hi"]) == {"1_hi", "2_hi", "[1]_hi", "1\n_hi"}
    assert excluded_ids(IDS, ["[1]_hi"]) == {"[1]_hi"}
    assert excluded_ids(IDS, ["1_en", "1_?i", "1_."]) == {"1_en"}
    assert excluded_ids(IDS, ["a*b"]) == {"a*b", "axb"}
    assert excluded_ids(IDS, []) == set()
