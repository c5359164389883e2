"""What the READMEs print runs as printed."""

import re
import tomllib
from pathlib import Path

import pytest

from perdure.experiment import config

ROOT = Path(__file__).parents[1]


def blocks(file: str, language: str) -> list[str]:
    """The fenced blocks of a page that are marked with a language; "" for those without a mark."""
    found, inside = [], None
    for line in (ROOT / file).read_text().splitlines():
        mark = line.strip()
        if inside is None and mark.startswith("```"):
            inside = (mark.removeprefix("```"), [])
        elif inside is not None and mark == "```":
            found.append(inside)
            inside = None
        elif inside is not None:
            inside[1].append(line.removeprefix("   ") if file == "CONTRIBUTING.md" else line)
    return ["\n".join(lines) for marked, lines in found if marked == language]


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("README.md", "python"):
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "model.perdure").exists() and (tmp_path / "memory.perdure").exists()
    printed = capsys.readouterr().out.splitlines()
    assert "['cat', 'dog', 'fox']" in printed
    assert any(line.startswith("| replay | 2 | ") for line in printed) and (tmp_path / "runs/mine/picture.svg").exists()
    last_row = eval(printed[4])
    assert len(last_row) == 5 and min(last_row) > 0.7, "replay keeps every task of Split MNIST"


def test_the_experiment_of_the_readme_is_valid(tmp_path):
    (block,) = blocks("README.md", "toml")
    file = tmp_path / "permuted.toml"
    file.write_text(block)
    plan = config.load(file)
    assert len(plan.stream) == 10
    assert tomllib.loads(block)["seeds"] == [0, 1, 2]


def test_the_chinese_readme_shows_the_same_code():
    for language in ("python", "toml", ""):
        code = [re.sub(r" *#.*", "", block) for block in blocks("README.md", language)]
        mirrored = [re.sub(r" *#.*", "", block) for block in blocks("README.zh-CN.md", language)]
        assert code == mirrored


PAGES = [
    "README.md",
    "README.zh-CN.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("file", PAGES)
def test_links_lead_somewhere(file):
    text = (ROOT / file).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / file).parent / target).exists(), f"{file} links to {target}"


def test_the_method_of_the_contributing_page_runs():
    (block,) = blocks("CONTRIBUTING.md", "python")
    names: dict[str, object] = {}
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    noise = names["GradientNoise"]
    assert noise(scale=0.5).settings() == {"name": "gradient-noise", "scale": 0.5}
