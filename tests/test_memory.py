"""The memory keeps who its rule says, never more than its size, and goes on bit for bit after a round trip."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.checkpoint import clone
from perdure.memory import ClassBalanced, Memory, Reservoir, Ring

POLICIES = [Reservoir, ClassBalanced, Ring]
# Chi-square quantiles at 1 - 1e-4, by degrees of freedom.
QUANTILE = {11: 37.37, 19: 50.80, 39: 80.65, 63: 113.50}


def numbered(start: int, stop: int, classes: int = 3) -> tuple[dict[str, Tensor | dict[str, Tensor]], Tensor]:
    """Rows that know their number: row i has x = [i, -i], a token dict, and class i % classes."""
    number = torch.arange(start, stop)
    tokens = {"ids": number[:, None].repeat(1, 3), "mask": torch.ones(stop - start, 3, dtype=torch.bool)}
    return {"x": torch.stack([number, -number], 1).float(), "tokens": tokens, "number": number}, number % classes


def offered(memory: Memory, sizes: list[int], classes: int = 3) -> Memory:
    start = memory.seen
    for size in sizes:
        memory.add(*numbered(start, start + size, classes))
        start += size
    return memory


def numbers(memory: Memory) -> list[int]:
    found = memory.all()["number"]
    assert isinstance(found, Tensor)
    return found.tolist()


def inclusion_statistic(counts: Tensor, kept: int, trials: int) -> float:
    """Chi-square with len(counts) - 1 degrees of freedom when every trial keeps `kept` of the rows uniformly.

    One trial's indicators have covariance p (1 - p) N / (N - 1) (I - J / N), because exactly `kept` are one.
    """
    rows = len(counts)
    share = kept / rows
    return float(((counts - trials * share) ** 2).sum() / (trials * share * (1 - share) * rows / (rows - 1)))


def same(left: object, right: object) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return left == right


# ---------------------------------------------------------------------------------------------------------- reservoir


class OneTooFew(Reservoir):
    @staticmethod
    def _slots(uniform: Tensor, position: Tensor) -> Tensor:
        return (uniform * position).floor().long()


class OneTooMany(Reservoir):
    @staticmethod
    def _slots(uniform: Tensor, position: Tensor) -> Tensor:
        return (uniform * (position + 2)).floor().long()


def reservoir_statistic(policy: type[Reservoir]) -> float:
    counts = torch.zeros(20)
    for trial in range(1500):
        memory = policy(5, seed=trial)
        memory.add({"number": torch.arange(0, 11)})
        memory.add({"number": torch.arange(11, 20)})
        counts[numbers(memory)] += 1
    return inclusion_statistic(counts, kept=5, trials=1500)


def test_the_reservoir_is_uniform_and_the_same_test_rejects_an_off_by_one() -> None:
    assert reservoir_statistic(Reservoir) < QUANTILE[19]
    assert reservoir_statistic(OneTooFew) > QUANTILE[19]
    assert reservoir_statistic(OneTooMany) > QUANTILE[19]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_reservoir_equals_the_row_by_row_loop_on_the_same_draws(sizes: list[int], capacity: int, seed: int) -> None:
    memory = offered(Reservoir(capacity, seed), sizes)
    generator = torch.Generator().manual_seed(seed)
    slots: list[int] = []
    for row in range(sum(sizes)):
        uniform = torch.rand(1, dtype=torch.float64, generator=generator).item()
        if row < capacity:
            slots.append(row)
        elif int(uniform * (row + 1)) < capacity:
            slots[int(uniform * (row + 1))] = row  # a later row overwrites an earlier one
    assert numbers(memory) == slots
    assert memory.seen == sum(sizes)


# --------------------------------------------------------------------------------------------- class balanced and ring


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 25), st.integers(1, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_who_is_kept_equals_one_sort_over_all_rows_ever_offered(
    sizes: list[int], capacity: int, classes: int, newest: bool
) -> None:
    memory = offered(Ring(capacity) if newest else ClassBalanced(capacity, seed=7), sizes, classes)
    rows = range(sum(sizes))
    draws = torch.rand(len(rows), dtype=torch.float64, generator=torch.Generator().manual_seed(7)).tolist()
    priority = [-row if newest else draws[row] for row in rows]
    rank = [sum(priority[other] < priority[row] for other in rows[row % classes :: classes]) for row in rows]
    best = sorted(rows, key=lambda row: (rank[row], priority[row]))[:capacity]
    assert sorted(numbers(memory)) == sorted(best)


def test_classes_share_the_capacity_like_water_and_later_classes_shrink_the_others() -> None:
    memory = ClassBalanced(12)
    shares = []
    for label, rows in ((0, 50), (1, 3), (2, 50), (3, 50)):
        memory.add({"label": torch.full((rows,), label)}, torch.full((rows,), label))
        shares.append(sorted(Counter(memory.all()["label"].tolist()).values()))  # type: ignore[union-attr]
    assert shares == [[12], [3, 9], [3, 4, 5], [3, 3, 3, 3]]


def test_every_class_is_sampled_uniformly_also_after_it_was_shrunk() -> None:
    counts = torch.zeros(24)
    for trial in range(1200):
        memory = ClassBalanced(8, seed=trial)
        for start in range(0, 24, 6):  # class 0 arrives first and fills the memory, class 1 halves it
            memory.add({"number": torch.arange(start, start + 6)}, torch.full((6,), start // 12))
        counts[numbers(memory)] += 1
    assert inclusion_statistic(counts[:12], kept=4, trials=1200) < QUANTILE[11]
    assert inclusion_statistic(counts[12:], kept=4, trials=1200) < QUANTILE[11]


def test_the_ring_keeps_the_newest_rows_of_each_class() -> None:
    memory = offered(Ring(6), [40, 1, 0, 9], classes=3)
    assert sorted(numbers(memory)) == [44, 45, 46, 47, 48, 49]
    memory.add({**numbered(50, 52)[0]}, torch.tensor([0, 0]))
    assert sorted(numbers(memory)) == [44, 46, 47, 49, 50, 51]  # 45 and 48 were of class 0


def test_rows_that_stay_are_not_moved() -> None:
    memory = offered(ClassBalanced(9), [30])
    before = numbers(memory)
    offered(memory, [5])
    after = numbers(memory)
    assert len(set(before) & set(after)) < 9
    assert all(row == after[slot] for slot, row in enumerate(before) if row in after)


def test_a_missing_or_misshapen_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"key int64 \[4\], found none"):
        ClassBalanced(3).add({"x": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"key int64 \[4\], found torch.float32 \[4\]"):
        Ring(3).add({"x": torch.zeros(4)}, torch.zeros(4))


# ------------------------------------------------------------------------------------------------- every rule: columns


@pytest.mark.parametrize("policy", POLICIES)
def test_columns_of_a_row_stay_together_through_adding_growing_and_drawing(policy: type[Memory]) -> None:
    memory = offered(policy(3000), [700, 1500, 2500])
    for rows in (memory.all(), memory.draw(50)):
        number = rows["number"]
        assert isinstance(number, Tensor) and isinstance(rows["x"], Tensor) and isinstance(rows["tokens"], dict)
        assert torch.equal(rows["x"], torch.stack([number, -number], 1).float())
        assert torch.equal(rows["tokens"]["ids"], number[:, None].repeat(1, 3))
        assert rows["tokens"]["mask"].all()
    assert len(memory) == len(set(numbers(memory))) == 3000
    assert memory.seen == 4700


def test_a_large_capacity_is_not_allocated_at_once() -> None:
    memory = Reservoir(10**12)
    memory.add({"x": torch.zeros(10, 5)})
    assert memory.bytes == 10 * (5 * 4 + 1)  # a byte says whether the row is new
    assert sum(tensor.nbytes for tensor in memory._store.values()) == 1024 * (5 * 4 + 1)


def test_stored_rows_are_copies_without_a_graph() -> None:
    memory = Reservoir(4)
    scores = torch.ones(2, 3, requires_grad=True)
    memory.add({"scores": scores * 1})
    rows = torch.zeros(2, 3)
    memory.add({"scores": rows})
    rows += 9
    kept = memory.all()["scores"]
    assert isinstance(kept, Tensor) and not kept.requires_grad
    assert kept.sum() == 6


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": torch.zeros(2, 4), "y": torch.zeros(3)}, "equal length"),
        ({"x": torch.zeros(2, 4)}, r"holds columns \['x', 'y'\], but was offered \['x'\]"),
        ({"x": torch.zeros(2, 4).half(), "y": torch.zeros(2)}, "x holds torch.float32 rows"),
        ({"x": torch.zeros(2, 4, 2), "y": torch.zeros(2)}, r"shape \[4\], but was offered .* shape \[4, 2\]"),
        ({}, "equal length"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_change_nothing(columns: dict[str, Tensor], message: str) -> None:
    memory = Reservoir(4)
    memory.add({"x": torch.zeros(2, 4), "y": torch.zeros(2)})
    before = clone(memory.state())
    with pytest.raises(ValueError, match=message):
        memory.add({**columns})
    assert same(before, memory.state())


# ---------------------------------------------------------------------------------------------- every rule: capacities


@pytest.mark.parametrize("policy", POLICIES)
def test_a_capacity_in_bytes_counts_every_column_and_is_never_exceeded(policy: type[Memory]) -> None:
    row = 2 * 4 + (3 * 8 + 3 * 1) + 8 + 1 + (0 if policy is Reservoir else 16)  # x, tokens, number, new, the rule's
    for capacity, size in (("1 kB", 1000), ("0.002 MB", 2000), (f"{row} B", row)):
        memory = offered(policy(capacity), [3, 100])
        assert len(memory) == size // row
        assert memory.bytes == len(memory) * row <= size
        assert sum(tensor.nbytes for tensor in memory._store.values()) <= size
    with pytest.raises(ValueError, match=f"below one row of {row} bytes"):
        offered(policy(f"{row - 1} B"), [3])


@pytest.mark.parametrize("capacity", ["10", "10 mb", "MB", "-1 MB", "", 0, -3])
def test_a_capacity_that_is_no_size_is_refused(capacity: int | str) -> None:
    with pytest.raises(ValueError, match="capacity"):
        Reservoir(capacity)


def test_a_column_that_widens_is_padded_with_nan_or_zero_and_so_are_narrower_rows() -> None:
    memory = Reservoir(10)
    memory.add({"scores": torch.ones(2, 2), "ids": torch.ones(2, 2).long()})
    memory.add({"scores": torch.ones(1, 3), "ids": torch.ones(1, 4).long()})
    memory.add({"scores": torch.ones(1, 1), "ids": torch.ones(1, 1).long()})
    kept = memory.all()
    assert isinstance(kept["scores"], Tensor) and isinstance(kept["ids"], Tensor)
    nan = float("nan")
    expected = torch.tensor([[1, 1, nan], [1, 1, nan], [1, 1, 1], [1, nan, nan]])
    assert torch.equal(kept["scores"].nan_to_num(-1), expected.nan_to_num(-1))
    assert kept["ids"].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]


@pytest.mark.parametrize("policy", POLICIES)
def test_widening_keeps_a_byte_capacity_true_by_dropping_rows(policy: type[Memory]) -> None:
    memory = policy("800 B")
    bookkeeping = 1 if policy is Reservoir else 17
    memory.add({"scores": torch.ones(120, 2)}, torch.arange(120) % 2)
    assert len(memory) == 800 // (8 + bookkeeping)
    memory.add({"scores": torch.ones(1, 10)}, torch.tensor([0]))
    assert len(memory) == 800 // (40 + bookkeeping)
    memory.add({"scores": torch.ones(120, 2)}, torch.arange(120) % 2)
    assert len(memory) == 800 // (40 + bookkeeping)
    assert sum(tensor.nbytes for tensor in memory._store.values()) <= 800
    with pytest.raises(ValueError, match="below one row"):
        memory.add({"scores": torch.ones(1, 201)}, torch.tensor([0]))


def test_the_reservoir_stays_uniform_when_widening_drops_rows() -> None:
    counts = torch.zeros(20)
    for trial in range(1500):
        memory = Reservoir("128 B", seed=trial)
        memory.add({"number": torch.arange(12)[:, None]})  # 16 rows of 8 bytes: all are kept
        memory.add({"number": torch.arange(12, 20)[:, None].repeat(1, 3)})  # 5 rows of 24 bytes
        kept = memory.all()["number"]
        assert isinstance(kept, Tensor) and len(kept) == 5
        counts[kept[:, 0]] += 1
    assert inclusion_statistic(counts, kept=5, trials=1500) < QUANTILE[19]


# --------------------------------------------------------------------------------------------------- every rule: draws


@pytest.mark.parametrize("count", [4, 10, 25])  # up to a quarter of the rows by rejection, then by permutation
def test_draws_are_uniform_without_replacement_and_in_random_order(count: int) -> None:
    memory = Reservoir(40, seed=count)
    memory.add({"number": torch.arange(40)})
    anywhere, first, last = torch.zeros(40), torch.zeros(40), torch.zeros(40)
    for _ in range(2000):
        drawn = memory.draw(count)["number"]
        assert isinstance(drawn, Tensor)
        assert len(drawn) == len(drawn.unique()) == count
        anywhere[drawn] += 1
        first[drawn[0]] += 1
        last[drawn[-1]] += 1
    assert inclusion_statistic(anywhere, kept=count, trials=2000) < QUANTILE[39]
    assert inclusion_statistic(first, kept=1, trials=2000) < QUANTILE[39]
    assert inclusion_statistic(last, kept=1, trials=2000) < QUANTILE[39]


def test_drawing_more_rows_than_there_are_gives_all_of_them_once() -> None:
    memory = Reservoir(10)
    assert memory.draw(3) == {} and memory.all() == {}
    offered(memory, [7])
    drawn = memory.draw(100)["number"]
    assert isinstance(drawn, Tensor)
    assert sorted(drawn.tolist()) == list(range(7))
    assert drawn.tolist() != list(range(7))


# --------------------------------------------------------------------------------------------------- every rule: state


@pytest.mark.parametrize("capacity", [20, "2 kB"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_round_trip_mid_stream_continues_bit_for_bit(policy: type[Memory], capacity: int | str) -> None:
    original = offered(policy(capacity, seed=3), [0, 9, 30])
    original.draw(4)
    state = clone(original.state())
    kept = {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
    resumed = policy(capacity, seed=99)
    resumed.load_state(state)
    for memory in (original, resumed):
        offered(memory, [1, 40, 3])
    assert same(original.draw(2), resumed.draw(2))
    assert same(original.draw(15), resumed.draw(15))
    assert same(original.state(), resumed.state())
    assert same(state, kept), "the state is a copy: neither memory may write into it"


def test_the_state_holds_the_filled_rows_only_and_plain_values() -> None:
    state = offered(ClassBalanced("2 kB"), [5]).state()
    assert all(isinstance(value, Tensor | int | str) for value in state.values())
    assert all(len(value) == 5 for name, value in state.items() if isinstance(value, Tensor) and name != "generator")
    generator = state["generator"]
    assert isinstance(generator, Tensor) and generator.dtype == torch.uint8


def test_an_empty_memory_makes_the_round_trip() -> None:
    resumed = Reservoir("1 kB", seed=5)
    resumed.load_state(Reservoir("1 kB").state())
    assert same(offered(resumed, [50]).state(), offered(Reservoir("1 kB"), [50]).state())


def test_the_state_of_another_kind_of_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="policy 'Reservoir', but this one has 'Ring'"):
        Ring(5).load_state(Reservoir(5).state())
    with pytest.raises(ValueError, match="capacity 6, but this one has 5"):
        Ring(5).load_state(Ring(6).state())


def test_torch_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    for policy in POLICIES:
        offered(policy("1 kB"), [50, 3]).draw(5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("capacity", [2e3, True, None])
def test_a_capacity_that_is_no_size_is_refused_at_once(capacity: object):
    with pytest.raises(TypeError, match="give a whole number of rows"):
        Reservoir(capacity)  # type: ignore[arg-type]


@pytest.mark.parametrize("past", [False, True])
def test_among_many_rows_too_no_row_is_drawn_twice(past: bool) -> None:
    memory = Reservoir(20_000, seed=1)
    memory.add({"number": torch.arange(20_000)})
    memory.settle()
    memory.add({"number": torch.arange(20_000, 30_000)})
    for _ in range(5):
        drawn = memory.draw(2000, past=past)["number"]
        assert isinstance(drawn, Tensor) and len(drawn.unique()) == 2000
        assert not past or drawn.max() < 20_000


def test_copies_of_a_state_share_the_rows_of_a_memory_that_keeps_every_row_and_stay_as_they_were():
    from perdure.checkpoint import clone
    from perdure.memory import EVERY

    for capacity, shared in ((EVERY, True), (4, False)):
        memory = Reservoir(capacity)
        memory.add({"x": torch.arange(4)})
        memory.settle()
        copy = clone(memory.state())
        assert (copy["column/x"].data_ptr() == memory.state()["column/x"].data_ptr()) == shared
        for start in range(4, 3000, 4):
            memory.add({"x": torch.arange(start, start + 4)})
        assert copy["column/x"].tolist() == [0, 1, 2, 3] and not copy["new"].any()
