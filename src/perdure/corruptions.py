"""What weather, night and a bad lens do to images: fog, night, rain, blur; the same row always looks the same.

In the spirit of Hendrycks & Dietterich 2019 (arXiv:1903.12261), in tensors only. What differs: sizes are shares of the
image, so that a photograph of any size looks alike; night and rain are not among theirs, and blur is Gaussian; the
veil of the fog is value noise instead of a diamond-square fractal; the five severities are our own.

Chance comes from a hash of (seed, condition, the row's own pixels, place), so a row looks the same whatever the order,
the selection, the batch or the device that it is read in, and nothing is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from perdure.batch import Columns
from perdure.seeds import seeded
from perdure.spelling import one_of

CLEAR = "clear"
SEVERITIES = (1, 2, 3, 4, 5)
BITS = 0xFFFFFFFF
VALUES_AT_ONCE = 1 << 17  # of so many numbers; more rows wait, and hashes stay in the cache
GREY = 4 * 127.5, math.sqrt(4 * (256**2 - 1) / 12)  # mean and deviation of the sum of four random bytes

FOG = (0.4, 0.7, 1.0, 1.5, 2.2)  # thickness c
NIGHT_LIGHT = (0.5, 0.38, 0.28, 0.2, 0.14)  # what is left of the light
NIGHT_GRAIN = (0.02, 0.025, 0.03, 0.035, 0.04)  # deviation of the sensor's noise
NIGHT_TINT = (0.8, 0.95, 1.25)  # red, green, blue of a night sky
RAIN = (0.06, 0.1, 0.15, 0.21, 0.28)  # share of the image that streaks cover, if none cross
RAIN_DULL = (0.1, 0.2, 0.3, 0.4, 0.5)  # how much of the contrast an overcast sky takes
RAIN_GREY, RAIN_LIGHT, RAIN_OPACITY, RAIN_SLANT = 0.45, 0.85, 0.7, 0.35
BLUR = (0.02, 0.03, 0.04, 0.05, 0.065)  # standard deviation as a share of the shorter side


def mixed(x: Tensor) -> Tensor:
    """Whole numbers below 2^32, stirred: every bit of the result depends on every bit of x. No product passes 2^63."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & BITS
    x = (x ^ (x >> 15)) * 0x31848BAB & BITS
    return x ^ (x >> 14)


class Chance:
    """Random numbers for rows, from a hash: row r, use u, place p -> mixed(key of r xor mixed(p + salt of u))."""

    def __init__(self, rows: Tensor, seed: int) -> None:
        """`rows` are uint8 [n, c, h, w]; the key of a row is a hash of its pixels and their places."""
        self.seed, self.device = seed, rows.device
        pixels = rows.flatten(1).long()
        places = torch.arange(pixels.shape[1], device=rows.device) << 8
        self.keys = mixed(mixed(pixels + places & BITS).sum(1) & BITS)

    def bits(self, use: str, *shape: int) -> Tensor:
        """Random 32 bits, int64 [n, *shape]."""
        places = torch.arange(math.prod(shape), device=self.device)
        table = mixed(places + (seeded(self.seed, use) & BITS) & BITS)
        return mixed(self.keys[:, None] ^ table).view(-1, *shape)

    def uniform(self, use: str, *shape: int) -> Tensor:
        """Numbers from 0 to below 1, float32 [n, *shape]."""
        return (self.bits(use, *shape) >> 8).float() / 2**24

    def bell(self, use: str, *shape: int) -> Tensor:
        """Numbers of mean 0 and variance 1, nearly normal: the sum of four random bytes; at most 3.5 from 0."""
        bits = self.bits(use, *shape)
        total = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24)
        return (total.float() - GREY[0]) / GREY[1]


def fog(v: Tensor, chance: Chance, level: int) -> Tensor:
    """(v + c p) m / (m + c): a veil p [n, 1, h, w] from 0 to 1, m the row's brightest value.

    p = sum over k = 1, 2, 3 of 2^-k x noise on a lattice of 2^k x 2^k cells, bilinear between its points; then the
    row's least is taken away, and its greatest becomes 1.
    """
    height, width = v.shape[-2:]
    veil = torch.zeros(len(v), height, width, device=v.device)
    for octave in (1, 2, 3):
        points = 2**octave + 1
        lattice = chance.uniform(f"veil {octave}", points, points)
        veil = veil + _between(_between(lattice, 1, height), 2, width) / 2**octave
    veil = veil - veil.amin((1, 2), keepdim=True)
    veil = (veil / veil.amax((1, 2), keepdim=True).clamp(min=1e-6))[:, None]
    brightest, thickness = v.amax((1, 2, 3), keepdim=True), FOG[level]
    return (v + thickness * veil) * brightest / (brightest + thickness)


def night(v: Tensor, chance: Chance, level: int) -> Tensor:
    """light x tint x (v + grey) / 2 + grain x noise: dark, half its colour gone, bluish (if it has three channels), and
    grainy. `grey` is the mean of the channels; the noise has variance 1 at every pixel of every channel.
    """
    channels, height, width = v.shape[1:]
    tint = torch.tensor(NIGHT_TINT if channels == 3 else (1.0,), device=v.device)[:, None, None]
    faded = (v + _mean_of_channels(v)) / 2
    noise = chance.bell("grain", channels, height, width)
    return NIGHT_LIGHT[level] * tint * faded + NIGHT_GRAIN[level] * noise


def rain(v: Tensor, chance: Chance, level: int) -> Tensor:
    """u + opacity s (0.85 - u), u = v + dull (0.45 - v): an overcast sky, and streaks s from 0 to 1.

    A drop falls on a pixel with probability cover / length and draws a streak down and to the right, as long as a
    fifth of the height, which fades: s[y, x] = max over k of drop[y - k, x - round(0.35 k)] (1 - k / length).
    """
    height, width = v.shape[-2:]
    length = max(2, round(height / 5))
    side = round(RAIN_SLANT * (length - 1))
    drops = chance.uniform("drops", height + length - 1, width + side) < RAIN[level] / length
    streaks = torch.zeros(len(v), height, width, device=v.device)
    for k in range(length):
        top, left = length - 1 - k, side - round(RAIN_SLANT * k)
        fallen = drops[:, top : top + height, left : left + width]
        streaks = torch.maximum(streaks, fallen * (1 - k / length))
    dull = v + RAIN_DULL[level] * (RAIN_GREY - v)
    return dull + RAIN_OPACITY * streaks[:, None] * (RAIN_LIGHT - dull)


def blur(v: Tensor, chance: Chance, level: int) -> Tensor:
    """A Gaussian, its deviation a share of the shorter side, cut at three deviations; the edge goes on outside."""
    sigma = BLUR[level] * min(v.shape[-2:])
    reach = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)]
    for dim in (2, 3):
        sides = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
        padded, size = F.pad(v, sides, mode="replicate"), v.shape[dim]
        parts = (padded.narrow(dim, k, size) * (weight / sum(weights)) for k, weight in enumerate(weights))
        v = sum(parts, torch.zeros_like(v))  # not a convolution: its last bits may depend on the size of the batch
    return v


CONDITIONS: dict[str, Callable[[Tensor, Chance, int], Tensor] | None] = {
    CLEAR: None,
    "fog": fog,
    "night": night,
    "rain": rain,
    "blur": blur,
}


@dataclass(frozen=True)
class Corruption:
    """Images as they look in a condition, by name: uint8 [n, c, h, w] -> the same shape and type.

    severity  1 to 5
    seed      other weather of the same kind
    """

    condition: str
    severity: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("condition", self.condition, CONDITIONS)
        if type(self.severity) is not int or self.severity not in SEVERITIES:
            raise ValueError(f"severity is {self.severity!r}; it is a whole number from 1 to 5")

    def __call__(self, x: Columns) -> Columns:
        """Raises ValueError for what is no uint8 image."""
        if not isinstance(x, Tensor) or x.ndim != 4 or x.dtype != torch.uint8:
            found = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else "named columns"
            raise ValueError(f"{self.condition} takes uint8 images [n, channels, height, width], found {found}")
        change = CONDITIONS[self.condition]
        if change is None or not x.numel():
            return x
        rows = max(1, VALUES_AT_ONCE // x[0].numel())
        made = []
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            chance = Chance(part, seeded(self.seed, self.condition))
            values = change(part.float() / 255, chance, self.severity - 1)
            made.append((255 * values).round().clamp(0, 255).to(torch.uint8))
        return torch.cat(made)


def _between(lattice: Tensor, dim: int, size: int) -> Tensor:
    """`size` pixels of a lattice along one dimension, linear between its points; pixel centres lie inside its cells."""
    cells = lattice.shape[dim] - 1
    places = [(pixel + 0.5) * cells / size for pixel in range(size)]
    first = torch.tensor([math.floor(place) for place in places], device=lattice.device)
    share = torch.tensor([place % 1 for place in places], device=lattice.device)
    share = share[:, None] if dim == 1 else share
    near, far = lattice.index_select(dim, first), lattice.index_select(dim, first + 1)
    return near + share * (far - near)


def _mean_of_channels(v: Tensor) -> Tensor:
    """The mean over dim 1, kept; added one after the other, so that no bit depends on the batch."""
    return sum((v[:, c : c + 1] for c in range(v.shape[1])), torch.zeros_like(v[:, :1])) / v.shape[1]
