"""Which rows are examined: decided by content alone, once for all updates."""

import numpy as np
import pytest

from perdure.recipes.contents import pixel_content, table_content, text_content
from perdure.store.exams import divide, mark, new_key, thinned

KEY = "00" * 32


def contents(count: int, start: int = 0) -> list[bytes]:
    return [b"row %d" % row for row in range(start, start + count)]


def test_the_same_content_is_on_the_same_side_in_every_update():
    first, second = contents(2000), contents(2000, 1000)
    sides = [
        {c: i in set(found.examine) for i, c in enumerate(rows)}
        for rows in (first, second)
        for found in [divide(KEY, rows)]
    ]
    assert all(sides[0][c] == sides[1][c] for c in set(first) & set(second))


def test_about_the_share_is_examined_and_the_marks_are_even():
    found = divide(KEY, contents(20_000), share=0.2)
    assert abs(len(found.examine) - 4000) < 5 * (20_000 * 0.2 * 0.8) ** 0.5
    assert sorted(found.learn + found.examine) == list(range(20_000))
    places = np.array([mark(KEY, c) / 2**64 for c in contents(20_000)])
    counts = np.histogram(places, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square, 19 degrees of freedom, 0.999


def test_another_key_chooses_other_rows():
    rows = contents(2000)
    one, other = divide(KEY, rows), divide(new_key(), rows)
    assert 0 < len(set(one.examine) & set(other.examine)) < 0.5 * len(one.examine)


def test_repeated_rows_are_examined_once_and_never_learnt():
    rows = contents(500)
    found = divide(KEY, [*rows, *rows[:300], *rows[:10]], share=0.5)
    examined = {([*rows, *rows])[i] for i in found.examine}
    assert len(examined) == len(found.examine) == len(found.marks)
    learnt = {([*rows, *rows[:300], *rows[:10]])[i] for i in found.learn}
    assert not examined & learnt and found.repeated == 310


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="share"):
        divide(KEY, contents(3), share)


def test_exams_are_thinned_evenly_and_small_ones_stay_whole():
    chance = np.random.default_rng(0)
    exams = {
        name: chance.integers(0, 2**62, size).tolist()
        for name, size in (("a", 50), ("b", 900), ("c", 5000), ("d", 700))
    }
    kept = thinned(exams, most=2000, least=100)
    assert {name: len(rows) for name, rows in kept.items()} == {"a": 50, "b": 650, "c": 650, "d": 650}
    for name, rows in kept.items():
        chosen, others = [exams[name][i] for i in rows], set(range(len(exams[name]))) - set(rows)
        assert rows == sorted(rows) and max(chosen) <= min((exams[name][i] for i in others), default=2**63)


def test_a_floor_holds_however_many_exams_there_are():
    exams = {str(n): list(range(n, 1000 + n)) for n in range(50)}
    assert {len(rows) for rows in thinned(exams, most=5000, least=200).values()} == {200}
    assert {len(rows) for rows in thinned(exams, most=50_000).values()} == {1000}
    assert thinned({}) == {}


def test_thinning_twice_is_thinning_once():
    chance = np.random.default_rng(1)
    exams = {str(n): chance.integers(0, 2**62, 3000).tolist() for n in range(4)}
    once = thinned(exams, most=2000)
    first = thinned(exams, most=6000)
    again = thinned({n: [exams[n][i] for i in rows] for n, rows in first.items()}, most=2000)
    assert {n: [first[n][i] for i in rows] for n, rows in again.items()} == once


def test_content_is_what_a_row_says():
    assert text_content("  Great  FILM\n") == text_content("great film") == text_content("ｇreat film")
    assert text_content("great film!") != text_content("great film")
    assert table_content({"a": 1, "b": "x", "c": None}) == table_content({"b": "x", "a": 1.0, "c": float("nan")})
    assert table_content({"a": 1}) != table_content({"a": "1"}) != table_content({"b": "1"})
    assert pixel_content((1, 2, 3), b"123456") != pixel_content((1, 3, 2), b"123456")
