"""What a step and importances cost on a network of Keras, against the same network in plain torch, in CPU seconds.

make test-keras     # once, for the environment
KERAS_BACKEND=torch build/keras-venv/bin/python tools/keras_cost.py
"""

import time

import keras
import torch
from keras import layers
from torch import nn

from perdure import Learner, Task, methods, models
from perdure.integrations import keras as bridge

STEPS, BATCH, ROWS, REPEATS = 20, 128, 200, 4
torch.set_num_threads(1)


def mlp() -> tuple[keras.Model, nn.Module, list[int], list[int]]:
    hidden = [layers.Dense(400, activation="relu"), layers.Dense(400, activation="relu")]
    twin = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))
    return keras.Sequential([keras.Input((784,)), *hidden, layers.Dense(10)]), twin, [784], [784]


def convolutional() -> tuple[keras.Model, nn.Module, list[int], list[int]]:
    body, twin = [], []
    for inputs, outputs in ((1, 16), (16, 32)):
        body += [layers.Conv2D(outputs, 3, activation="relu"), layers.BatchNormalization(), layers.MaxPooling2D()]
        twin += [nn.Conv2d(inputs, outputs, 3), nn.ReLU(), nn.BatchNorm2d(outputs), nn.MaxPool2d(2)]
    model = keras.Sequential([keras.Input((28, 28, 1)), *body, layers.Flatten(), layers.Dense(10)])
    return model, nn.Sequential(*twin, nn.Flatten(), nn.Linear(800, 10)), [28, 28, 1], [1, 28, 28]


def cost(network: nn.Module, shape: list[int]) -> tuple[float, float]:
    """Milliseconds of a step, the best of some tasks; seconds of the exact Fisher."""
    x = torch.rand(STEPS * BATCH, *shape, generator=torch.Generator().manual_seed(0))
    y, taken = torch.arange(len(x)) % 10, []
    learner = Learner(network, methods.EWC(rows=ROWS), scenario="class", batch_size=BATCH)
    began = time.process_time()
    learner.consolidate((x[:ROWS], y[:ROWS]))
    fisher = time.process_time() - began
    plain = Learner(network, methods.Finetune(), scenario="class", batch_size=BATCH)
    for number in range(REPEATS):
        began = time.process_time()
        plain.learn(Task((x, y), name=str(number)))
        taken.append(time.process_time() - began)
    return 1000 * min(taken) / STEPS, fisher


for make in (mlp, convolutional):
    model, twin, shape, other = make()
    ours = cost(bridge.adapt(model, range(10)), shape)
    theirs = cost(models.adapt(twin, str(len(twin) - 1), range(10)), other)
    print(f"{make.__name__:14} a step {ours[0]:5.1f} ms, torch {theirs[0]:5.1f} ms, {ours[0] / theirs[0]:.2f} times")
    print(f"{'':14} Fisher of {ROWS} rows {ours[1]:.2f} s, torch {theirs[1]:.2f} s")
