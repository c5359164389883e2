"""A run killed again and again ends like a run that never was."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from perdure import checkpoint

CONFIG = """
name = "killed"
benchmark = { name = "split-mnist", tasks = 5 }
scenarios = ["class"]
methods = [{ name = "replay", capacity = 500 }, "ewc"]
seeds = [0]
save_every = 0.2
threads = 1
[model]
name = "mlp"
hidden = [200, 200]
"""


def run(kills: int, config: Path, out: Path) -> int:
    command = [sys.executable, Path(__file__).with_name("kill_runner.py"), str(kills), "1", "run", config, "--out", out]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def tensors(tree: object, path: str = "") -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {path: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    return {name: tensor for key, value in items for name, tensor in tensors(value, f"{path}/{key}").items()}


def test_a_run_killed_twenty_times_ends_like_an_unbroken_one(tmp_path):
    config = tmp_path / "killed.toml"
    config.write_text(CONFIG)
    assert run(0, config, tmp_path / "unbroken") == 0
    assert run(20, config, tmp_path / "broken") >= 10, "the run was over before it could be killed often: slow it down"

    unbroken, broken = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("unbroken", "broken"))
    assert unbroken.pop("measured").keys() == broken.pop("measured").keys()
    assert unbroken == broken
    states = sorted((tmp_path / "unbroken").glob("cells/*/state.perdure"))
    assert len(states) == 2
    for state in states:
        other = tmp_path / "broken" / state.relative_to(tmp_path / "unbroken")
        left, right = (tensors(checkpoint.read(file, "learner")) for file in (state, other))
        assert left.keys() == right.keys() and len(left) > 20
        assert all(torch.equal(left[name], right[name]) for name in left)
