"""A Keras network that knows five digits is taught five more, and goes back to Keras, on whatever backend.

    KERAS_BACKEND=torch python examples/keras_digits.py runs/keras [rows of each task]

The first file is made here, by Keras alone; one that TensorFlow saved does as well. The digits ship inside the package.
"""

import sys
from pathlib import Path

import keras
import torch
from keras import layers

from perdure import Learner, Rows, Task, datasets, methods
from perdure.integrations import keras as bridge

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/keras")
most = int(sys.argv[2]) if len(sys.argv) > 2 else 6000
out.mkdir(parents=True, exist_ok=True)
mnist = datasets.mnist()


def digits(rows: Rows, which: tuple[int, ...], most: int) -> tuple[torch.Tensor, list[int]]:
    """Images as Keras has them, uint8 [n, 28, 28, 1], and labels."""
    index = [row for row, label in enumerate(rows.labels) if label in which][:most]
    return rows.read(torch.tensor(index)).movedim(1, -1), [rows.labels[row] for row in index]


# What is there already: a trained network of Keras, in a file.
keras.utils.set_random_seed(0)
network = [layers.Conv2D(16, 3, activation="relu"), layers.MaxPooling2D(), layers.BatchNormalization()]
network += [layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(), layers.Dropout(0.25)]
model = keras.Sequential([keras.Input((28, 28, 1)), *network, layers.Dense(5, activation="softmax")])
x, y = digits(mnist.train, (0, 1, 2, 3, 4), most)
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(x.numpy() / 255, torch.tensor(y).numpy(), epochs=2, batch_size=64, verbose=0)
model.save(out / "five.keras")

tests = [Task(digits(mnist.test, which, 5000), name=str(which)) for which in ((0, 1, 2, 3, 4), (5, 6, 7), (8, 9))]
for name, method in (("fine-tuning", methods.Finetune()), ("replay, 500 rows", methods.Replay(500, policy="balanced"))):
    learner = Learner(bridge.load(out / "five.keras", classes=range(5)), method, scenario="class", batch_size=64)
    learner.consolidate(digits(mnist.train, (0, 1, 2, 3, 4), 500))
    for which in ((5, 6, 7), (8, 9)):
        learner.learn(Task(digits(mnist.train, which, most), name=str(which)))
    grades = [float((learner.predict(task.train) == torch.tensor(task.train.labels)).double().mean()) for task in tests]
    print(name, " ".join(f"digits {task.name}: {100 * grade:.1f} %" for task, grade in zip(tests, grades, strict=True)))

print("columns of ten.keras:", bridge.save(learner, out / "ten.keras"))
again = keras.saving.load_model(out / "ten.keras")  # in TensorFlow: the same line
x, y = digits(mnist.test, tuple(range(10)), 1000)
print("apart by", float(abs(again.predict(x.numpy() / 255, verbose=0) - learner.predict_proba(x).numpy()).max()))
