"""Twenty requests at once while updates are promoted: how many fail, and what an update costs those who ask.

    .venv/bin/python tools/serve_load.py --seconds 60 --updates 3

First a quarter of the time without updates, then the updates one after another; says failures, p50 and p99 of each.
"""

import argparse
import asyncio
import os
import socket
import statistics
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa

from perdure import recipes
from perdure.store.store import Store


def clouds(labels: str, rows: int, seed: int) -> pa.Table:
    """Points about a place for each letter."""
    draws = np.random.default_rng(seed)
    names = draws.choice(list(labels), rows)
    places = {letter: np.random.default_rng(ord(letter)).normal(size=16) * 4 for letter in string.ascii_lowercase}
    x = np.stack([places[name] for name in names]) + draws.normal(size=(rows, 16))
    return pa.table({**{f"x{i}": x[:, i] for i in range(16)}, "label": names})


async def ask(client: httpx.AsyncClient, body: dict, until: float, found: list[tuple[float, float, int, int]]) -> None:
    while time.monotonic() < until:
        begun = time.monotonic()
        try:
            answer = await client.post("/predict", json=body)
            status, version = answer.status_code, answer.json().get("version", 0)
        except httpx.HTTPError:
            status, version = 0, 0
        found.append((begun, time.monotonic() - begun, status, version))


async def teach(client: httpx.AsyncClient, first: float, updates: int) -> list[tuple[float, float]]:
    """Updates one after another from `first` on: when each began and ended."""
    await asyncio.sleep(max(0.0, first - time.monotonic()))
    spans = []
    for number in range(updates):
        rows = clouds(string.ascii_lowercase[number + 2], 400, number).to_pylist()
        begun = time.monotonic()
        answer = await client.post("/update", json={"rows": rows})
        assert answer.status_code == 202, answer.text
        while (await client.get("/health")).json()["update"]["running"]:
            await asyncio.sleep(0.25)
        spans.append((begun, time.monotonic()))
    return spans


async def load(url: str, seconds: float, updates: int, at_once: int) -> None:
    body = {"rows": clouds("ab", 8, 99).drop_columns(["label"]).to_pylist()}
    found: list[tuple[float, float, int, int]] = []
    limits = httpx.Limits(max_connections=at_once + 4)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        while True:
            try:
                if (await client.get("/health")).status_code == 200:
                    break
            except httpx.HTTPError:
                await asyncio.sleep(0.2)
        start = time.monotonic()
        asking = [ask(client, body, start + seconds, found) for _ in range(at_once)]
        spans, *_ = await asyncio.gather(teach(client, start + seconds / 4, updates), *asking)
        health = (await client.get("/health")).json()
    report(found, spans, health, start + seconds / 4)


def report(found: list[tuple[float, float, int, int]], spans: list, health: dict, first: float) -> None:
    during = [taken for begun, taken, _, _ in found if any(a <= begun <= b for a, b in spans)]
    before = [taken for begun, taken, _, _ in found if begun + taken < first]
    failed = sum(status != 200 for _, _, status, _ in found)
    print(f"{len(found)} requests, {failed} failed; versions that answered: {sorted({v for *_, v in found})}")
    print(f"updates: {len(spans)}, {', '.join(f'{b - a:.1f} s' for a, b in spans)}; now version {health['version']}")
    marks = {}
    for name, taken in (("before", before), ("during", during)):
        if len(taken) > 99:
            marks[name] = statistics.quantiles(taken, n=100)[98]
            print(
                f"{name}: p50 {1000 * statistics.median(taken):.1f} ms, p99 {1000 * marks[name]:.1f} ms, {len(taken)}"
            )
    if len(marks) == 2:
        print(f"p99 during an update is {marks['during'] / marks['before']:.2f} times the p99 before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipes.build({"name": "tabular", "label": "label"})
        Store.init("load", clouds("ab", 2000, 0), recipe=recipe, root=Path(folder), training={"epochs": 3})
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "perdure.cli", "serve", "load", "--store", folder, "--port", str(port)]
        server = subprocess.Popen(command, env={**os.environ}, stdout=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            asyncio.run(load(url, arguments.seconds, arguments.updates, arguments.at_once))
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
