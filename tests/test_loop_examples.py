"""The example scripts of other people's loops: few added lines, and what they are worth."""

import difflib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1] / "examples"
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "trainer": ("accelerate", {"rows": 48, "epochs": 5, "months": ((0, 1), (2, 3))}),
    "lightning_digits": ("pytorch_lightning", {"rows": 100, "epochs": 3, "months": ((0, 1), (2, 3), (4, 5))}),
    "sklearn_digits": ("sklearn", {"epochs": 4, "months": ((0, 1), (2, 3), (4, 5))}),
}


def main_of(name: str) -> Callable[..., float]:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., float] = module.main
    return found


@pytest.mark.parametrize("name", SMALL)
def test_a_script_becomes_continual_by_at_most_eight_added_lines(name: str) -> None:
    plain, ours = ((ROOT / f"{file}.py").read_text().splitlines() for file in (name, f"{name}_continual"))
    added = [line for line in difflib.ndiff(plain, ours) if line.startswith("+ ")]
    assert 1 <= len(added) <= 8
    assert max(len(plain), len(ours)) <= 60


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore")
def test_it_beats_itself_without_them(name: str) -> None:
    """The contract's rule: five seeds, paired, the mean difference above three standard errors."""
    library, settings = SMALL[name]
    pytest.importorskip(library)
    plain, ours = main_of(name), main_of(f"{name}_continual")
    lead = torch.tensor([ours(seed, **settings) - plain(seed, **settings) for seed in range(5)])
    assert float(lead.mean()) > 3 * float(lead.std()) / 5**0.5
    assert not float((0 * lead).mean()) > 3 * float((0 * lead).std()) / 5**0.5  # the rule can fail
