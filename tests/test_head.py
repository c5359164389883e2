"""The growing head: its rows, its capacity, and what an optimizer may do to them."""

import math

import pytest
import torch
from torch import nn

from perdure.models import Head


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(head):
    """Every weight row and its bias, opened or not: [capacity, features + 1]."""
    return torch.cat([torch.cat(list(head.weights)), torch.cat(list(head.biases))[:, None]], dim=1).detach()


def test_an_empty_head_scores_nothing_and_still_has_a_gradient_path():
    head = Head(5)
    scores = head(torch.randn(3, 5))
    assert scores.shape == (3, 0)
    scores.sum().backward()
    assert not head.weights[0].grad.any()


def test_scores_are_those_of_one_linear_layer_over_the_opened_rows():
    head = Head(5)
    head.grow(40, generator())
    x = torch.randn(3, 5)
    table = rows(head)[:40]
    assert torch.allclose(head(x), x @ table[:, :5].T + table[:, 5], atol=1e-6)


@pytest.mark.parametrize("columns, blocks", [(1, [16]), (16, [16]), (17, [16, 16]), (33, [16, 16, 32])])
def test_capacity_doubles_and_only_when_it_is_needed(columns, blocks):
    head = Head(3)
    head.grow(columns, generator())
    assert [len(block) for block in head.weights] == blocks
    assert [len(block) for block in head.biases] == blocks
    assert head.columns == columns and head.capacity == sum(blocks)


@pytest.mark.parametrize("steps", [[2, 4, 4, 10, 40], [1, 16, 17, 40], list(range(1, 41))])
def test_growing_in_steps_gives_the_weights_of_growing_at_once(steps):
    once, stepped = Head(7), Head(7)
    once.grow(40, generator(3))
    draws = generator(3)
    for columns in steps:
        stepped.grow(columns, draws)
    assert torch.equal(rows(once), rows(stepped))
    assert rows(once)[:40].all() and not rows(once)[40:].any()


def test_opened_rows_are_uniform_within_one_over_the_root_of_the_features():
    head = Head(25)
    head.grow(400, generator())
    drawn = rows(head)[:400] * math.sqrt(25)
    assert drawn.abs().max() <= 1
    assert drawn.abs().max() > 0.999
    assert abs(drawn.mean()) < 0.03 and abs(drawn.var() - 1 / 3) < 0.02
    assert drawn[:, -1].var() > 0.25  # biases are drawn, too


def test_growing_keeps_every_parameter_object_and_what_it_holds():
    head = Head(4)
    head.grow(3, generator())
    before, values = dict(head.named_parameters()), {k: v.detach().clone() for k, v in head.named_parameters()}
    head.grow(20, generator(1))
    after = dict(head.named_parameters())
    assert list(before) == ["weights.0", "biases.0"]
    assert sorted(after) == ["biases.0", "biases.1", "weights.0", "weights.1"]
    for name, parameter in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter[:3], values[name][:3])


def test_growing_draws_only_from_the_generator_it_is_given():
    state = torch.get_rng_state()
    Head(4).grow(20, generator())
    assert torch.equal(state, torch.get_rng_state())


def test_a_head_cannot_shrink():
    head = Head(4)
    head.grow(6, generator())
    with pytest.raises(ValueError, match="has 6 columns and can't shrink to 5"):
        head.grow(5, generator())


def decaying_optimizers():
    return {
        "adam": lambda p: torch.optim.Adam(p, lr=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    }


@pytest.mark.parametrize("make", decaying_optimizers().values(), ids=decaying_optimizers())
def test_rows_not_yet_opened_stay_exactly_zero_under_any_optimizer(make):
    head = Head(6)
    head.grow(19, generator())
    before = rows(head)
    optimizer = make(head.parameters())
    x, y = torch.randn(30, 6, generator=generator()), torch.arange(30) % 19
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(x), y).backward()
        optimizer.step()
    assert (rows(head)[:19] != before[:19]).all()
    assert torch.equal(rows(head)[19:], torch.zeros(13, 7))


def test_the_first_block_is_the_old_layer_itself():
    old = nn.Linear(4, 10)
    head = Head(4, first=old)
    x = torch.randn(3, 4)
    assert head.weights[0] is old.weight and head.biases[0] is old.bias
    assert torch.equal(head(x), old(x))
    head.grow(12, generator())
    assert [len(block) for block in head.weights] == [10, 16]
    assert torch.allclose(head(x)[:, :10], old(x), atol=1e-6)


def test_a_head_upon_a_layer_without_bias_has_none():
    old = nn.Linear(4, 10, bias=False)
    head, other = Head(4, first=old), Head(4, first=nn.Linear(4, 10))
    head.grow(12, generator())
    other.grow(12, generator())
    assert list(dict(head.named_parameters())) == ["weights.0", "weights.1"]
    assert torch.equal(head.weights[1], other.weights[1])
    assert torch.equal(head(torch.zeros(2, 4)), torch.zeros(2, 12))


def test_new_blocks_take_the_dtype_and_device_of_the_old_ones():
    double, nowhere = Head(4).double(), Head(4).to("meta")
    double.grow(20, generator())
    nowhere.grow(20, generator())
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    assert {p.device.type for p in nowhere.parameters()} == {"meta"}
    single = Head(4)
    single.grow(20, generator())
    assert torch.equal(rows(double).float(), rows(single))


def test_a_head_refuses_anything_but_one_vector_a_row():
    with pytest.raises(ValueError, match=r"\[n, 4\], but was given \[2, 4, 4\]"):
        Head(4)(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"given \[2, 5\]"):
        Head(4)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="at least 1 feature"):
        Head(0)
    with pytest.raises(ValueError, match="takes 3 features, but the head has 4"):
        Head(4, first=nn.Linear(3, 2))
