"""Results of experiments that never ran, with plausible numbers, for the tests of the report."""

import random
from typing import Any

from perdure import metrics

# label: title, share of a task's accuracy kept at each later task (class, task), seconds, bytes kept
METHODS: dict[str, tuple[str, tuple[float, float], float, int]] = {
    "finetune": ("Fine-tuning", (0.0, 0.96), 3.9, 0),
    "ewc": ("Elastic weight consolidation", (0.02, 0.985), 6.1, 3_824_000),
    "replay": ("Experience replay", (0.972, 0.995), 4.4, 1_600_000),
    "der++": ("Dark experience replay ++", (0.976, 0.995), 5.2, 1_680_000),
    "joint": ("Joint training", (0.995, 1.0), 21.4, 47_040_000),
}


def results(
    tasks: int = 5, seeds: int = 3, scenarios: tuple[str, ...] = ("class", "task"), trace: bool = False
) -> dict[str, Any]:
    """Schema 1: every method x scenario x seed finished."""
    keys = [(method, scenario, seed) for scenario in scenarios for method in METHODS for seed in range(seeds)]
    names = [f"{2 * task}, {2 * task + 1}" for task in range(tasks)]
    return {
        "schema": 1,
        "perdure": "0.1.0",
        "name": "split-mnist-five-ways",
        "benchmark": {
            "name": "split-mnist",
            "settings": {"tasks": tasks},
            "description": f"MNIST cut into {tasks} tasks of 2 digits, in the order of the digits.",
            "tasks": names,
            "train_rows": [12665 - 101 * task for task in range(tasks)],
            "test_rows": [2115 - 33 * task for task in range(tasks)],
        },
        "config": {
            "name": "split-mnist-five-ways",
            "benchmark": {"name": "split-mnist", "tasks": tasks},
            "scenarios": list(scenarios),
            "methods": [{"name": method, "label": method} for method in METHODS],
            "seeds": list(range(seeds)),
            "model": {"name": "mlp", "settings": {"hidden": [400, 400]}},
            "training": {"epochs": 1, "batch_size": 128, "optimizer": {"name": "adam", "lr": 0.001}, "clip": None},
        },
        "cells": [cell(*key, tasks, trace) for key in keys],
        "measured": {
            "started": "2026-11-22T12:00:00+00:00",
            "finished": "2026-11-22T12:04:09+00:00",
            "machine": {
                "platform": "Linux",
                "processor": "x86_64",
                "cores": 2,
                "threads": 1,
                "memory_bytes": 25_000_000_000,
                "python": "3.11.7",
                "torch": "2.13.0",
                "device": "cpu",
            },
            "peak_resident_bytes": 600_000_000,
            "cells": [seconds(*key) for key in keys],
        },
    }


def cell(method: str, scenario: str, seed: int, tasks: int, trace: bool) -> dict[str, Any]:
    title, kept, _, memory = METHODS[method]
    generator = random.Random(f"{method} {scenario} {seed}")
    keep = kept[scenario == "task"]
    best = [0.985 - 0.012 * generator.random() - 0.004 * task for task in range(tasks)]
    matrix: list[list[float | None]] = []
    for now in range(tasks):
        past = [best[task] * keep ** (now - task) * (1 - 0.015 * generator.random()) for task in range(now + 1)]
        floor = 0.5 if scenario == "task" else 0.0
        matrix.append([*(round(max(value, floor), 4) for value in past), *[None] * (tasks - now - 1)])
    evaluations = [
        {"step": 94 * now + step, "task": now, "accuracy": dipping(matrix, now, step / 94)}
        for now in range(tasks)
        for step in range(0, 94, 6)
    ]
    return {
        "method": method, "title": title, "upper_bound": method == "joint", "scenario": scenario, "seed": seed,
        "settings": {"capacity": 2000, "policy": "reservoir"} if "er" in method or method == "replay" else {},
        "complete": True, "initial": [None] * tasks, "accuracy": matrix, "metrics": metrics.summary(matrix),
        "trace": evaluations if trace and method in ("replay", "ewc") else None,
        "steps": 94 * tasks, "multiply_adds": int(34_000_000_000 * tasks * (METHODS[method][2] / 3.9)),
        "parameter_bytes": 1_912_000, "memory_bytes": memory,
    }  # fmt: skip


def dipping(matrix: list[list[float | None]], now: int, part: float) -> list[float | None]:
    """Accuracy within a task: the new task rises, the old ones dip and recover."""
    row: list[float | None] = [None] * len(matrix)
    for task in range(now):
        before, after = matrix[now - 1][task] or 0.0, matrix[now][task] or 0.0
        row[task] = before + (after - before) * part - 0.5 * before * max(0.0, 0.25 - abs(part - 0.15))
    row[now] = (matrix[now][now] or 0.0) * min(1.0, 3 * part)
    return row


def seconds(method: str, scenario: str, seed: int) -> dict[str, Any]:
    spent = METHODS[method][2] * (1 + 0.03 * seed)
    return {
        "method": method, "scenario": scenario, "seed": seed, "train_seconds": spent,
        "consolidate_seconds": 1.3 if method == "ewc" else 0.0, "evaluate_seconds": 0.4,
    }  # fmt: skip
