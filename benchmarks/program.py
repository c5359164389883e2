"""The program: how long `perdure --help` takes, and how much memory the demonstration takes over importing torch."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Row, dump

PROGRAM = Path(sys.executable).with_name("perdure")


def seconds_of_help() -> float:
    start = time.perf_counter()
    subprocess.run([PROGRAM, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def peak(*command: str) -> float:
    """The largest resident memory of a process, MB."""
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed")
    return usage.ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    seconds_of_help()
    waits = [seconds_of_help() for _ in range(7)]
    torch = peak(sys.executable, "-c", "import torch")
    demo = peak(str(PROGRAM), "demo")
    dump([
        Row("perdure --help", "seconds", waits, "s", 0.3),
        Row("perdure demo: peak memory", f"import torch ({torch:.0f} MB)", [demo - torch], "MB", 150.0),
    ])  # fmt: skip
