"""Images are moved and mirrored as said, each on its own, by the generator given."""

import pytest
import torch
import torch.nn.functional as F

from perdure.augment import PADDING, crop_and_flip


def test_every_image_is_one_of_its_crops_and_all_crops_come_equally_often():
    image = torch.arange(1.0, 13).view(1, 2, 2, 3)
    made = crop_and_flip(image.expand(8000, -1, -1, -1), torch.Generator().manual_seed(0))
    assert made.shape == (8000, 2, 2, 3)
    padded, crops = F.pad(image[0], [PADDING] * 4), {}
    for top in range(9):
        for left in range(9):
            for flip in (False, True):
                crop = padded[:, top : top + 2, left : left + 3]
                crop = crop.flip(2) if flip else crop
                crops.setdefault(tuple(crop.flatten().tolist()), []).append((top, left, flip))
    counts = dict.fromkeys(crops, 0)
    for found in made.flatten(1).tolist():
        counts[tuple(found)] += 1
    expected = {key: 8000 * len(places) / 162 for key, places in crops.items()}
    chi2 = sum((counts[key] - expected[key]) ** 2 / expected[key] for key in crops)
    assert chi2 < len(crops) + 5 * (2 * len(crops)) ** 0.5


def test_the_same_generator_gives_the_same_and_torchs_own_stays():
    images, before = torch.rand(16, 3, 8, 8), torch.get_rng_state()
    first, again = (crop_and_flip(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, crop_and_flip(images, torch.Generator().manual_seed(4)))


def test_what_is_no_image_is_refused():
    for x in (torch.rand(4, 5), {"a": torch.rand(4, 3, 8, 8)}):
        with pytest.raises(ValueError, match="takes images"):
            crop_and_flip(x, torch.Generator())
