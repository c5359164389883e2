"""Runs a command of ours in forked children and kills them: `kill_runner.py KILLS SEED COMMAND...`; tells how many.

A fork spares each child the import of torch, so the kills fall on the work and not on the start.
"""

import os
import random
import signal
import sys
import time

import torch

import perdure.cli
import perdure.experiment.run


def child(command: list[str]) -> int:
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os._exit(perdure.cli.main(command))
    return process


def main() -> None:
    torch.set_num_threads(1)
    kills, seed, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    draws, killed = random.Random(seed), 0
    while killed < kills:
        process = child(command)
        time.sleep(draws.uniform(0.0, 1.5))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            break
        killed += 1
    _, status = os.waitpid(child(command), 0)
    sys.stdout.write(f"{killed}\n")
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
