"""Work side by side: in forks of this process, each of one thread, that end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

import torch

Key = TypeVar("Key")
Found = TypeVar("Found")

_work: Callable[[Any], Any] | None = None  # what forks find here: a function of the user's own needs no pickling


def side_by_side(work: Callable[[Key], Found], keys: Sequence[Key], workers: int) -> Iterator[tuple[Key, Found]]:
    """`work(key)` of each key, as they end; with one worker in this process, in order.

    Raises ValueError where processes cannot be forked, BrokenProcessPool where one was killed.
    """
    global _work
    if workers == 1 or len(keys) < 2:
        yield from ((key, work(key)) for key in keys)
        return
    if "fork" not in multiprocessing.get_all_start_methods():
        raise ValueError(f"workers is {workers}, and processes cannot be forked on this system: take 1")
    before, _work, others = _work, work, set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), initializer=begin, initargs=(os.getpid(),))
    try:
        places = {pool.submit(_done, key): key for key in keys}
        for future in as_completed(places):
            yield places[future], future.result()
    finally:
        _work = before
        for child in set(multiprocessing.active_children()) - others:  # idle, or no longer wanted
            child.terminate()
        pool.shutdown(cancel_futures=True)


def begin(parent: int) -> None:
    """A worker begins: one thread, no answer to Ctrl-C (the parent says when to stop), and an end with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def end_with(parent: int) -> None:
    """Ends this process when its parent was killed, so that nobody works on unseen."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _done(key: Any) -> Any:
    assert _work is not None
    return _work(key)
