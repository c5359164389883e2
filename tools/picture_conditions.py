"""Draws docs/conditions.png: rows of CIFAR-10 in each condition of `streams.corrupted`, at severity 3.

python tools/picture_conditions.py data/cifar10 docs/conditions.png
"""

import sys

import torch
from PIL import Image

from perdure import datasets, streams

ROWS, ZOOM, GAP = 8, 2, 2
data = datasets.cifar10(sys.argv[1])
kinds = [data.test.labels.index(label) for label in (1, 9, 3, 4, 5, 7, 0, 8)][:ROWS]
shown = []
for task in streams.corrupted(data):
    images = task.test.read(torch.tensor(kinds)).repeat_interleave(ZOOM, 2).repeat_interleave(ZOOM, 3)
    framed = torch.nn.functional.pad(images, [GAP] * 4, value=255)
    shown.append(torch.cat(list(framed), dim=2))
Image.fromarray(torch.cat(shown, dim=1).permute(1, 2, 0).contiguous().numpy()).save(sys.argv[2], optimize=True)
