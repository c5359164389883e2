"""What generators make is drawn and judged, and comes into results and report."""

import base64
import io
import re
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from toy_experiment import TOML, toys  # noqa: F401

from perdure import models, report
from perdure.experiment.config import load
from perdure.experiment.results import Results
from perdure.experiment.run import run
from perdure.experiment.samples import Samples, judge, png
from perdure.learner import Learner
from perdure.methods import Finetune
from perdure.streams import Stream


def test_the_picture_has_each_image_in_its_place():
    images = torch.rand(10, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    drawn = torch.from_numpy(__import__("numpy").array(Image.open(io.BytesIO(png(images) or b""))))
    assert drawn.shape == (2 * 4, 8 * 5)
    for number, image in enumerate(images):
        top, left = number // 8 * 4, number % 8 * 5
        assert torch.equal(drawn[top : top + 4, left : left + 5], (image[0] * 255).round().to(torch.uint8))
    assert (drawn[4:, 10:] == 0).all()
    colours = torch.rand(1, 3, 2, 2)
    pixel = Image.open(io.BytesIO(png(colours) or b"")).getpixel((1, 0))
    assert pixel == tuple((colours[0, :, 0, 1] * 255).round().int().tolist())
    assert png(torch.rand(4, 7)) is None


class Maker(Finetune):
    """Makes rows of the first class only, whatever it learnt."""

    def samples(self, host: Any, count: int, seed: int = 0) -> torch.Tensor:
        return self.rows[torch.arange(count) % len(self.rows)]


def test_the_judge_says_what_it_sees(tmp_path):
    from toy_experiment import toy

    stream = toy(400)
    assert isinstance(stream, Stream)
    recipe = {"name": "mlp", "settings": {"inputs": 6, "hidden": [32]}}
    jury = judge([*stream] * 6, recipe, tmp_path / "judge")
    again = judge([], recipe, tmp_path / "judge")  # kept
    maker, rows = Maker(), stream[0].train
    first = torch.tensor([label == rows.classes[0] for label in rows.labels]).nonzero()[:, 0]
    maker.rows = rows.read(first)
    watched = Samples(lambda: again, tmp_path, keep=True)
    learner = Learner(models.build(recipe), maker, scenario="class", callbacks=[watched])
    for task in stream:
        learner.learn(task)
    assert [note["task"] for note in watched.notes] == [task.name for task in stream]
    p = jury.predict_proba(maker.samples(None, 10_000))
    note = watched.notes[0]
    assert note["confidence"] == pytest.approx(float(p.max(1).values.mean())) and note["picture"] is None
    shares = {str(label): float((p.argmax(1) == i).float().mean()) for i, label in enumerate(jury.classes)}
    assert note["balance"] == pytest.approx(shares) and note["balance"]["0"] > 0.5


def test_a_run_notes_them_and_the_report_shows_them(tmp_path):
    path = tmp_path / "toy.toml"
    generative = '{ name = "generative-replay", hidden = [8], latent = 2 }'
    path.write_text(re.sub(r"methods = \[.*?\n\]", f'methods = ["finetune", {generative}]', TOML, flags=re.S))
    run(load(path), tmp_path / "out", Console(file=io.StringIO()))
    cells = {(cell.method, cell.scenario): cell for cell in Results.read(tmp_path / "out").cells}
    assert cells["finetune", "class"].samples is None
    made = cells["generative-replay", "class"].samples
    assert made is not None and [note.task for note in made] == ["0, 1", "2, 3"]
    assert all(abs(sum(note.balance.values()) - 1) < 1e-6 and 0 < note.confidence <= 1 for note in made)
    results = Results.read(tmp_path / "out").model_dump(mode="json", by_alias=True)
    picture = base64.b64encode(png(torch.rand(64, 1, 3, 3)) or b"").decode()
    for cell in results["cells"]:
        for note in cell["samples"] or []:
            note["picture"] = picture
    page = report.render(results)
    assert page.count(f"data:image/png;base64,{picture}") == 4  # two tasks, two scenarios
    assert "What Generative replay makes" in page and "What Fine-tuning makes" not in page
