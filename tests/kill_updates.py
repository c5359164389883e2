"""Kills updates of a store at random instants: `python tests/kill_updates.py KILLS FOLDER`.

Two stores get the same updates; one is never interrupted, of the other's processes KILLS are killed (SIGKILL). After
each kill the version in production is loaded and asked. In the end both must be the same.
"""

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet
import torch
from store_examples import KEY, LABEL, clouds

import perdure.cli
from perdure import recipes
from perdure.store.store import Store

ROWS, EPOCHS = 3000, 30
SETTINGS = {"training": {"epochs": EPOCHS, "batch_size": 64}, "key": KEY}


def begin(root: Path) -> None:
    recipe = recipes.build({"name": "tabular", "label": LABEL})
    Store.init("clouds", clouds(["a", "b"], 500), recipe=recipe, root=root, **SETTINGS)


def command(root: Path, data: Path) -> list[str]:
    return ["update", "clouds", str(data), "--store", str(root), "--accept-shift", "--save-every", "0.3"]


def update(words: list[str], seconds: float | None = None) -> bool:
    """Runs an update in a process of its own; killed after some seconds, where given. Whether it came to its end."""
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os._exit(perdure.cli.main(words))
    if seconds is not None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return not os.WIFSIGNALED(status)


def kill(kills: int, folder: Path, seed: int = 1) -> tuple[Store, Store, int]:
    """(the store that was left alone, the one whose updates were killed, how often)."""
    torch.set_num_threads(1)
    draws, killed, number = random.Random(seed), 0, 0
    roots = folder / "alone", folder / "killed"
    for root in roots:
        begin(root)
    asked = clouds(["a", "b"], 20, 99)
    while killed < kills:
        number += 1
        data = folder / f"{number}.parquet"
        pyarrow.parquet.write_table(clouds(["a", "bcdefgh"[number % 7]], ROWS, number), data)
        update(command(roots[0], data))
        while killed < kills:
            if update(command(roots[1], data), draws.uniform(0.0, 1.5)):
                break
            killed += 1
            store = Store("clouds", roots[1])
            assert store.folder.production() in (number, number + 1), "production is as before or as after"
            store.predict(asked)
        update(command(roots[1], data))
    return Store("clouds", roots[0]), Store("clouds", roots[1]), killed


def same(alone: Store, killed: Store) -> None:
    """Production, versions, history, exams, weights, memory and optimizer are the same."""
    for store in (alone, killed):
        assert not store.folder.work.exists() and not list(store.folder.path.rglob("*.tmp"))
    assert alone.folder.production() == killed.folder.production()
    assert alone.folder.versions() == killed.folder.versions()
    told = [[(e["event"], e["version"], e["why"]) for e in store.folder.history()] for store in (alone, killed)]
    assert told[0] == told[1]
    assert [exam.marks for exam in alone.exams()] == [exam.marks for exam in killed.exams()]
    for number in alone.folder.versions():
        one, other = (store.answerer(number).learner for store in (alone, killed))
        assert_same(dict(one.model.state_dict()), dict(other.model.state_dict()))
        assert_same(one.method.state(), other.method.state())
        assert_same(one.optimizer.state_dict(), other.optimizer.state_dict())


def assert_same(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(
            one.nan_to_num() if one.is_floating_point() else one,
            other.nan_to_num() if one.is_floating_point() else other,
        )
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


if __name__ == "__main__":
    alone, killed, count = kill(int(sys.argv[1]), Path(sys.argv[2]))
    same(alone, killed)
    sys.stdout.write(f"{count} updates killed, {len(killed.folder.versions())} versions: as if none had been\n")
