"""The buffer: adding and drawing 128 images among 500, 50 000 and a million; its memory; data and rows on disk."""

from __future__ import annotations

import torch
from harness import Row, dump, in_turns, peak_megabytes, ratio
from torch import Tensor

from perdure.memory import Reservoir

IMAGES = 128
TURNS = 100
FULL = "a full reservoir of 500 takes few of them, one of a million most: what is more is rows that are written"
DIFFERENT = "finding 128 different rows among those of the past takes 50 us, a hundredth of a step"


def filled(capacity: int) -> Reservoir:
    memory = Reservoir(capacity, seed=0)
    x = torch.randint(256, (10_000, 784), dtype=torch.uint8)
    for start in range(0, capacity, len(x)):
        count = min(len(x), capacity - start)
        memory.add(columns(x[:count]))
    memory.settle()
    return memory


def columns(x: Tensor) -> dict[str, Tensor]:
    return {"x": x, "y": torch.zeros(len(x), dtype=torch.long), "task": torch.zeros(len(x), dtype=torch.long)}


def adding(memory: Reservoir) -> object:
    new = columns(torch.randint(256, (IMAGES, 784), dtype=torch.uint8))
    return lambda: [memory.add(new) for _ in range(TURNS)]


def drawing(memory: Reservoir) -> object:
    return lambda: [memory.draw(IMAGES, past=True) for _ in range(TURNS)]


def selecting(memory: Reservoir) -> object:
    kept = memory.all()

    def select() -> None:
        for _ in range(TURNS):
            index = torch.randint(len(memory), (IMAGES,))
            for name in ("x", "y", "task"):
                kept[name].index_select(0, index)

    return select


def sizes() -> list[Row]:
    memories = {capacity: filled(capacity) for capacity in (500, 50_000, 1_000_000)}
    held = peak_megabytes("VmRSS")
    draws = in_turns({str(capacity): drawing(memory) for capacity, memory in memories.items()})
    adds = in_turns({str(capacity): adding(memory) for capacity, memory in memories.items()})
    million = memories[1_000_000]
    plain = in_turns({"draw": drawing(million), "select": selecting(million)})
    rows = [
        ratio("draw 128 of 50 000 images", "of 500", draws, "50000", "500", 1.5),
        ratio(
            "draw 128 of 1 000 000 images", "of 500", draws, "1000000", "500", 1.5, note="what is more is cache misses"
        ),
        ratio("add 128 to 1 000 000 images", "to 500", adds, "1000000", "500", 1.5, note=FULL),
        ratio(
            "draw 128 of 1 000 000 images",
            "index_select of x, y and task",
            plain,
            "draw",
            "select",
            1.3,
            note=DIFFERENT,
        ),
    ]
    note = f"its rows are {million.bytes / 1e6:.0f} MB; the process, torch included, held {held:.0f} MB"
    allocated = sum(tensor.nbytes for tensor in million._store.values())
    return [*rows, Row("a million MNIST rows", "MB allocated", [allocated / 1e6], "MB", 900.0, note=note)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    dump(sizes())
