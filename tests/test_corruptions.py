"""Fog, night, rain and blur against their formulas written out; a row always looks the same."""

import math
from itertools import pairwise, product

import pytest
import torch

from perdure import corruptions, streams
from perdure.corruptions import CONDITIONS, Chance, Corruption
from perdure.data import Rows, Task
from perdure.datasets import arrays
from perdure.seeds import seeded

CHANGES = [name for name, change in CONDITIONS.items() if change]
MASK = 2**32 - 1


def images(count=6, channels=3, height=9, width=12, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=draws)


# ---- chance, in whole numbers of Python


def stirred(x):
    x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
    x = ((x ^ (x >> 15)) * 0x31848BAB) % 2**32
    return x ^ (x >> 14)


def bits(row, seed, use, place):
    key = stirred(sum(stirred(256 * at + value) for at, value in enumerate(row.flatten().tolist())) % 2**32)
    return stirred(key ^ stirred((place + seeded(seed, use)) % 2**32))


def test_chance_is_the_hash_written_out():
    rows = images(3)
    made = Chance(rows, 5).bits("drops", 4, 7)
    assert made.shape == (3, 4, 7)
    for row in range(3):
        assert made[row].flatten().tolist() == [bits(rows[row], 5, "drops", place) for place in range(28)]


def test_no_number_of_the_hash_passes_what_63_bits_hold():
    ends = torch.tensor([0, 1, MASK - 1, MASK, 0x80000000, 0x7FFFFFFF])
    assert corruptions.mixed(ends).tolist() == [stirred(x) for x in ends.tolist()]


def test_chance_is_even_independent_and_of_variance_1():
    chance = Chance(images(64), 0)
    drawn = chance.uniform("any", 1000)
    counts = torch.histc(drawn, 100, 0, 1)
    expected = drawn.numel() / 100
    assert float(((counts - expected) ** 2 / expected).sum()) < 99 + 5 * (2 * 99) ** 0.5
    table = torch.cat([drawn, chance.uniform("other", 1000)])  # 128 rows: no two may go together
    together = torch.corrcoef(table).fill_diagonal_(0).abs().max()
    assert float(together) < 5.5 / 1000**0.5
    beside = torch.corrcoef(torch.stack([drawn[:, :-1].flatten(), drawn[:, 1:].flatten()]))[0, 1]
    assert abs(float(beside)) < 5 / drawn.numel() ** 0.5
    noise = chance.bell("any", 1000)
    assert abs(float(noise.mean())) < 5 / 64000**0.5 and abs(float(noise.var()) - 1) < 0.03
    assert float(noise.abs().max()) < 3.5


# ---- the formulas


def values(rows):
    return rows.double() / 255


def test_blur_is_the_convolution_written_out():
    rows, level = images(2), 4
    sigma = corruptions.BLUR[level] * 9
    reach = math.ceil(3 * sigma)
    made = corruptions.blur(rows.float() / 255, Chance(rows, 0), level)
    kernel = {k: math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1)}
    whole = sum(a * b for a, b in product(kernel.values(), kernel.values()))
    for row, channel, y, x in product(range(2), range(3), range(9), range(12)):
        seen = sum(
            kernel[dy] * kernel[dx] * values(rows)[row, channel, min(max(y + dy, 0), 8), min(max(x + dx, 0), 11)]
            for dy, dx in product(kernel, kernel)
        )
        assert abs(float(made[row, channel, y, x]) - float(seen) / whole) < 1e-6


@pytest.mark.parametrize(("channels", "tint"), [(3, (0.8, 0.95, 1.25)), (1, (1.0,))])
def test_night_is_the_formula_written_out(channels, tint):
    rows = images(2, channels)
    made = Corruption("night", 2, seed=7)(rows)
    own = seeded(7, "night")
    for row, channel, y, x in product(range(2), range(channels), range(9), range(12)):
        v = values(rows)[row, :, y, x]
        drawn = bits(rows[row], own, "grain", (channel * 9 + y) * 12 + x)
        noise = (sum(drawn >> shift & 255 for shift in (0, 8, 16, 24)) - 510) / math.sqrt((256**2 - 1) / 3)
        seen = 0.38 * tint[channel] * (float(v[channel]) + float(v.mean())) / 2 + 0.025 * noise
        assert abs(int(made[row, channel, y, x]) - min(max(255 * seen, 0), 255)) < 0.501


def test_fog_is_the_formula_written_out():
    rows = images(2)
    made = Corruption("fog", 4)(rows)
    own = seeded(0, "fog")
    for row in range(2):
        veil = {}
        for y, x in product(range(9), range(12)):
            veil[y, x] = 0.0
            for k in (1, 2, 3):
                down, right = (y + 0.5) * 2**k / 9, (x + 0.5) * 2**k / 12
                for corner_y, corner_x in product((int(down), int(down) + 1), (int(right), int(right) + 1)):
                    share = (1 - abs(down - corner_y)) * (1 - abs(right - corner_x))
                    place = corner_y * (2**k + 1) + corner_x
                    veil[y, x] += share * (bits(rows[row], own, f"veil {k}", place) >> 8) / 2**24 / 2**k
        low, high = min(veil.values()), max(veil.values())
        v = values(rows)[row]
        for y, x in veil:
            seen = (v[:, y, x] + 1.5 * (veil[y, x] - low) / (high - low)) * v.max() / (v.max() + 1.5)
            assert (made[row, :, y, x] - 255 * seen).abs().max() < 0.51


def test_rain_is_the_formula_written_out():
    rows = images(2, height=20)
    made = Corruption("rain", 5)(rows)
    own, length, side = seeded(0, "rain"), 4, 1
    wet = 0
    for row in range(2):
        chance = 0.28 / length
        drops = {
            (y - length + 1, x - side): (bits(rows[row], own, "drops", y * (12 + side) + x) >> 8) / 2**24 < chance
            for y, x in product(range(20 + length - 1), range(12 + side))
        }
        for y, x in product(range(20), range(12)):
            streak = max(drops[y - k, x - round(0.35 * k)] * (1 - k / length) for k in range(length))
            wet += streak > 0
            dull = values(rows)[row, :, y, x] * 0.5 + 0.5 * 0.45
            seen = dull + 0.7 * streak * (0.85 - dull)
            assert (made[row, :, y, x] - 255 * seen).abs().max() < 0.51
    assert 40 < wet < 200  # of 480 pixels, 0.28 where no streaks cross


@pytest.mark.parametrize("condition", CHANGES)
def test_a_row_looks_the_same_in_any_batch_and_order(condition, monkeypatch):
    rows, change = images(17, height=32, width=31), Corruption(condition, seed=3)
    whole = change(rows)
    assert whole.dtype == torch.uint8 and whole.shape == rows.shape and not torch.equal(whole, rows)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    assert torch.equal(change(rows[order]), whole[order])
    assert torch.equal(torch.cat([change(row[None]) for row in rows]), whole)
    monkeypatch.setattr(corruptions, "VALUES_AT_ONCE", 5 * rows[0].numel())
    assert torch.equal(change(rows), whole)
    turned = rows.contiguous(memory_format=torch.channels_last)
    assert torch.equal(change(turned), whole)


@pytest.mark.parametrize("condition", ["fog", "night", "rain"])
def test_other_rows_and_other_seeds_have_other_weather(condition):
    grey = torch.full((2, 3, 16, 16), 128, dtype=torch.uint8)
    grey[1, 0, 0, 0] = 129
    made = Corruption(condition)(grey)
    assert (made[0] != made[1]).float().mean() > 0.05
    assert (made != Corruption(condition, seed=1)(grey)).float().mean() > 0.05


@pytest.mark.parametrize("condition", CHANGES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 7), (4, 64, 48), (3, 1, 1)])
def test_severity_grows_on_images_of_any_size(condition, shape):
    rows = images(8, *shape)
    away = [float((Corruption(condition, s)(rows).float() - rows.float()).abs().mean()) for s in range(1, 6)]
    assert away == sorted(away)
    if min(shape[1:]) > 20:
        assert all(later > sooner for sooner, later in pairwise(away))


def test_what_cannot_be_corrupted_is_refused():
    with pytest.raises(ValueError, match="'fogg'; did you mean 'fog'"):
        Corruption("fogg")
    for severity in (0, 6, 2.5, True):
        with pytest.raises(ValueError, match="severity is"):
            Corruption("fog", severity)
    for x in (images().float(), images()[0], {"a": images()}):
        with pytest.raises(ValueError, match="takes uint8 images"):
            Corruption("rain")(x)


# ---- as a stream


def road(rows=50, tests=10):
    x, y = images(rows), [row % 5 for row in range(rows)]
    return arrays(x, y, x[:tests], y[:tests], name="road")


def everything(rows):
    return rows.read(torch.arange(len(rows)))


def test_each_task_shows_all_rows_in_one_condition():
    data = road()
    stream = streams.corrupted(data, severity=2, seed=4)
    assert [task.name for task in stream] == ["clear", "fog", "night", "rain", "blur"]
    assert all(task.classes == (0, 1, 2, 3, 4) and task.train.labels == data.train.labels for task in stream)
    assert torch.equal(everything(stream[0].train), everything(data.train))
    for task in stream[1:]:
        seen = Corruption(task.name, 2, 4)(everything(data.train))
        assert torch.equal(everything(task.train), seen) and torch.equal(everything(task.test), seen[:10])
    picked = stream[2].train.select([40, 3])
    assert torch.equal(everything(picked), everything(stream[2].train)[[40, 3]])
    assert "clear, fog, night, rain, blur" in stream.description
    assert [task.name for task in streams.corrupted(data, ("night", "clear"))] == ["night", "clear"]


def test_apart_every_task_has_train_rows_of_its_own():
    data = road()
    stream = streams.corrupted(data, ("clear", "clear", "clear"), apart=True)
    dealt = [tuple(row.flatten().tolist()) for task in stream for row in everything(task.train)]
    assert sorted(dealt) == sorted(tuple(row.flatten().tolist()) for row in everything(data.train))
    assert [len(task.train) for task in stream] == [17, 17, 16]
    assert all(torch.equal(everything(task.test), everything(data.test)) for task in stream)
    assert all(task.classes == (0, 1, 2, 3, 4) for task in streams.corrupted(road(6), apart=True))
    other = streams.corrupted(data, ("clear",) * 3, apart=True, seed=1)
    assert other[0].fingerprint != stream[0].fingerprint


def test_a_stream_that_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match=r"corrupted needs images of shape \[c, h, w\]"):
        streams.corrupted(arrays(torch.ones(2, 3), [0, 1]))
    with pytest.raises(ValueError, match="4 train rows cannot be dealt to 5 tasks"):
        streams.corrupted(road(4, 2), apart=True)
    with pytest.raises(ValueError, match="takes uint8 images"):
        streams.corrupted(arrays(torch.rand(2, 3, 4, 4), [0, 1]))
    with pytest.raises(ValueError, match="at least 1"):
        streams.corrupted(road(), ())


def test_a_held_stream_is_the_same_stream_read_once():
    calls = []

    def counted(x):
        calls.append(len(x))
        return x + 1

    train = Rows(torch.arange(6.0)[:, None], ["a", "b"] * 3, columns={"day": range(6)}).map(counted)
    dense = Rows(torch.arange(3.0)[:, None], torch.rand(3, 2), classes=("p", "q"))
    tasks = [
        Task(train, train.select([1, 2]), name="one", classes=("b", "a")),
        Task(dense, validation=dense, name="two"),
    ]
    stream = streams.Stream(tasks, name="any", description="Words.")
    kept = streams.held(stream)
    before = len(calls)
    assert (kept.name, kept.description, [task.name for task in kept]) == ("any", "Words.", ["one", "two"])
    assert torch.equal(everything(kept[0].train), torch.arange(6.0)[:, None] + 1)
    assert kept[0].test.labels == ["b", "a"] and kept[0].classes == ("b", "a")
    assert kept[0].train.column("day").tolist() == list(range(6))
    assert len(calls) == before
    assert [task.fingerprint for task in kept] == [task.fingerprint for task in stream]
    assert kept[1].test is None and kept[1].validation.classes == ("p", "q")
    assert kept[1].train.labels == dense.labels
