"""Run Avalanche 0.6.0 on permuted MNIST in our protocol, in an environment of its own, for the table in RESULTS.md.

    .venv/bin/python tools/avalanche_permuted.py results/tables/permuted-mnist/others.json --seeds 0 1 2

Makes build/avalanche (once), hands it the ten permutations of `perdure.streams.permuted(mnist, 10, seed=0)`, and runs
MLP 784-400-400-10, Adam 1e-3, batches of 128, 3 epochs a task, no logger, one thread. Finished runs are kept in the
file: stopped, the same command goes on. PyPI's torchvision is built for another torch than a CPU one, and Avalanche
imports it: its compiled operators, which nothing here uses, are left out.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(__file__).parents[1]
ENVIRONMENT = HOME / "build" / "avalanche"
PACKAGES = [
    "psutil", "gputil", "scikit-learn", "matplotlib", "numpy", "pytorchcv", "wandb", "tensorboard", "tqdm", "gdown",
    "torchmetrics", "qpsolvers", "dill", "packaging", "typing-extensions", "setuptools",
]  # fmt: skip
METHODS = {
    "fine-tuning": ("Naive", {}),
    "EWC, online, strength 1000, decay 0.9": ("EWC", {"ewc_lambda": 1000, "mode": "online", "decay_factor": 0.9}),
    "SI, strength 1": ("SynapticIntelligence", {"si_lambda": 1.0}),
    "replay, 2000 rows": ("Replay", {"mem_size": 2000}),
}


def make_environment() -> Path:
    """The environment's Python; installed on the first call."""
    python, done = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".installed"
    if not done.exists():
        print("making build/avalanche (once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "--constraint", str(HOME / "constraints.txt"), "torch", *PACKAGES], check=True)
        subprocess.run([*install, "--no-deps", "torchvision==0.28.0", "avalanche-lib==0.6.0"], check=True)
        done.touch()
    return python


def write_data(path: Path) -> None:
    """MNIST as bytes and the ten permutations, from our own stream, so that both libraries learn the same."""
    import numpy as np
    import torch

    from perdure import datasets, streams

    mnist, everything = datasets.mnist(), {}
    pixel = torch.arange(784, dtype=torch.int32).view(1, 1, 28, 28)
    orders = streams.permuted(datasets.arrays(pixel, [0], pixel, [0]), 10, seed=0)
    first = torch.zeros(1, dtype=torch.long)
    everything["orders"] = np.stack([task.train.read(first).flatten().numpy() for task in orders])
    for name, rows in (("train", mnist.train), ("test", mnist.test)):
        everything[f"{name}_x"] = rows.read(torch.arange(len(rows))).flatten(1).numpy()
        everything[f"{name}_y"] = np.array(rows.labels)
    np.savez(path, **everything)


def inner(data: str, method: str, seed: int, tasks: int, rows: int | None) -> None:
    """In Avalanche's environment: one run; prints its result as JSON in the last line."""
    import numpy as np
    import torch

    real = torch.library.register_fake

    def lenient(operator, *rest, **more):
        leave_out = isinstance(operator, str) and operator.startswith("torchvision::")
        return (lambda function: function) if leave_out else real(operator, *rest, **more)

    torch.library.register_fake = lenient
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training import supervised
    from avalanche.training.plugins import EvaluationPlugin

    packed = np.load(data)
    streams = {}
    for name in ("train", "test"):
        x = torch.from_numpy(packed[f"{name}_x"])[:rows].float() / 255
        y = torch.from_numpy(packed[f"{name}_y"])[:rows].long()
        made = []
        for order in packed["orders"][:tasks]:
            part = torch.utils.data.TensorDataset(x[:, torch.from_numpy(order).long()], y)
            part.targets = y.tolist()
            made.append(as_classification_dataset(part))
        streams[name] = made
    benchmark = benchmark_from_datasets(**streams)
    layers = [torch.nn.Linear(784, 400), torch.nn.ReLU(), torch.nn.Linear(400, 400), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(400, 10))
    kind, settings = METHODS[method]
    strategy = getattr(supervised, kind)(
        model=model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3), criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=128, train_epochs=3, eval_mb_size=1024,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]), **settings,
    )  # fmt: skip
    seconds, learnt = 0.0, []

    def accuracy(experience: int) -> float:
        found = strategy.eval(benchmark.test_stream[experience])
        # It tells the last value of every experience, this one's among them.
        wanted = f"Exp{experience:03d}"
        return next(float(value) for key, value in found.items() if "Top1_Acc_Exp" in key and key.endswith(wanted))

    for number, experience in enumerate(benchmark.train_stream):
        begun = time.perf_counter()
        strategy.train(experience)
        seconds += time.perf_counter() - begun
        learnt.append(accuracy(number))
    last = [accuracy(number) for number in range(tasks)]
    print(json.dumps({"accuracy": sum(last) / tasks, "learnt": sum(learnt) / tasks, "seconds": seconds}))


def outer(arguments: argparse.Namespace) -> None:
    """Every method with every seed that the file does not have yet."""
    out: Path = arguments.out
    found = json.loads(out.read_text()) if out.exists() else {"library": "Avalanche 0.6.0", "rows": []}
    python, data = make_environment(), ENVIRONMENT / "data.npz"
    write_data(data)
    for seed in arguments.seeds:
        for method in METHODS:
            if any((row["label"], row["seed"]) == (method, seed) for row in found["rows"]):
                continue
            words = [str(python), __file__, str(out), "--inner", str(data), method, str(seed), str(arguments.tasks)]
            words += [str(arguments.rows)] if arguments.rows else []
            said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
            result = json.loads(said.strip().splitlines()[-1])
            found["rows"].append({"label": method, "scenario": "domain", "seed": seed, **result})
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{method}, seed {seed}: {100 * result['accuracy']:.1f} %, {result['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", type=int, default=10, help="fewer, for a trial")
    parser.add_argument("--rows", type=int, default=None, help="train rows a task, for a trial")
    parser.add_argument("--inner", nargs="+", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inner:
        data, method, seed, tasks, *rows = given.inner
        inner(data, method, int(seed), int(tasks), int(rows[0]) if rows else None)
    else:
        outer(given)
