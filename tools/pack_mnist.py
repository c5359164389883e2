"""Pack MNIST from two Parquet files of PNG images into the small file that ships inside the package.

    python tools/pack_mnist.py FOLDER src/perdure/assets/mnist.npz

FOLDER holds train.parquet and test.parquet. Four pixels of five are 0, so the file keeps one bit a pixel (ink or none)
and the values of the pixels with ink; that is smaller than the pixels themselves and faster to unpack. No pixel
changes, no row moves, and the same images always give the same file.
"""

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
import torch

from perdure.datasets import parquet


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack MNIST into one small .npz file.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    data = parquet(arguments.folder / "train.parquet", arguments.folder / "test.parquet")
    assert data.test is not None
    parts = (data.train, data.test)
    pixels = np.concatenate([np.asarray(part.read(torch.arange(len(part)))) for part in parts])
    ink = pixels > 0
    arrays = {
        "ink": np.packbits(ink),
        "values": pixels[ink],
        "labels": np.concatenate([np.asarray(part.labels, dtype=np.uint8) for part in parts]),
    }
    with zipfile.ZipFile(arguments.output, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy")  # carries a fixed date
            archive.writestr(member, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    print(f"{len(pixels)} images, {arguments.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
