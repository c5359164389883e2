"""What the tests let TensorFlow do in a process of its own: train and save models; load one and predict."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers

assert keras.config.backend() == "tensorflow"


def convolutional() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.25),
            layers.Dense(5, activation="softmax"),
        ]
    )


def dense() -> keras.Model:
    """Two inputs, joined; the softmax is a layer of its own."""
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    x = layers.Concatenate()([layers.Dense(16, activation="tanh")(left), right])
    x = layers.LayerNormalization()(layers.Dense(24, activation="gelu")(x))
    return keras.Model([left, right], layers.Softmax()(layers.Dense(3)(x)))


def binary() -> keras.Model:
    """One column, with a sigmoid, as for two classes."""
    x = keras.Input((12,))
    hidden = layers.Dropout(0.2, seed=7)(layers.Dense(32, activation="relu")(x))
    return keras.Model(x, layers.Dense(1, activation="sigmoid")(hidden))


def text() -> keras.Model:
    """Tokens, 0 for none; raw scores."""
    x = keras.Input((None,), dtype="int32")
    hidden = layers.GlobalAveragePooling1D()(layers.Embedding(50, 16, mask_zero=True)(x))
    return keras.Model(x, layers.Dense(2)(layers.Dense(16, activation="relu")(hidden)))


def recurrent() -> keras.Model:
    x = keras.Input((7, 3))
    return keras.Model(x, layers.Dense(2, activation="softmax")(layers.Bidirectional(layers.GRU(5))(x)))


def rows(kind: str, draws: np.random.Generator) -> tuple[object, np.ndarray]:
    """Rows that the network can learn something from."""
    if kind == "dense":
        x = draws.normal(size=(600, 12)).astype("float32")
        return {"left": x[:, :6], "right": x[:, 6:]}, x[:, [0, 5, 9]].argmax(1)
    if kind == "binary":
        x = draws.normal(size=(600, 12)).astype("float32")
        return x, (x[:, 0] > x[:, 1]).astype(int)
    if kind == "recurrent":
        x = draws.normal(size=(600, 7, 3)).astype("float32")
        return x, (x[:, -1, 0] > 0).astype(int)
    y = draws.integers(0, 2, 600)
    x = draws.integers(1, 25, (600, 9)) + 25 * y[:, None]
    return np.where(np.arange(9) < draws.integers(3, 10, (600, 1)), np.where(x < 50, x, 0), 0), y


def train(folder: Path) -> None:
    (folder / "backend.txt").write_text(keras.config.backend())
    for kind in ("convolutional", "dense", "binary", "text", "recurrent"):
        keras.utils.set_random_seed(1)
        model = globals()[kind]()
        if kind == "convolutional":
            digits = np.load(folder / "digits.npz")
            x, y, loss = digits["x"].astype("float32") / 255, digits["y"], "sparse_categorical_crossentropy"
        else:
            x, y = rows(kind, np.random.default_rng(1))
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=kind == "text")
        model.compile("adam", "binary_crossentropy" if kind == "binary" else loss)
        model.fit(x, y, epochs=2, batch_size=32, verbose=0)
        model.save(folder / f"{kind}.keras")
        some = {name: part[:200] for name, part in x.items()} if isinstance(x, dict) else {"x": x[:200]}
        given = some if isinstance(x, dict) else some["x"]
        np.savez(folder / f"{kind}.npz", y=y[:200], answers=model.predict(given, verbose=0), **some)


def predict(model: Path, asked: Path, answered: Path) -> None:
    x = dict(np.load(asked))
    np.save(answered, keras.saving.load_model(model).predict(x.get("x", x), verbose=0))


def serve() -> None:
    """A line on stdin names a model, rows and where answers go; a line is written when they are there."""
    for line in sys.stdin:
        predict(*map(Path, json.loads(line)))
        sys.stdout.write("answered\n")
        sys.stdout.flush()


command, *paths = sys.argv[1:]
{"train": train, "serve": serve}[command](*map(Path, paths))
