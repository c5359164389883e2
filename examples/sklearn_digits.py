"""A scikit-learn classifier learns two new digits at a time by `partial_fit`: a script as its users write it.

python examples/sklearn_digits.py
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier


def main(seed=0, epochs=20, months=((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))):
    """The share of test digits of all months that is answered rightly in the end."""
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16, y, random_state=seed, stratify=y)
    model = MLPClassifier((100,), batch_size=32, random_state=seed)
    for month in months:
        new = np.isin(y_train, month)
        for _ in range(epochs):
            model.partial_fit(x_train[new], y_train[new], classes=range(10))
    return float(model.score(x_test, y_test))


if __name__ == "__main__":
    print(f"right in the end: {main():.3f}")
