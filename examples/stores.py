"""What the three examples of a model in production share: commands as a person types them, on two stores."""

from collections.abc import Sequence
from pathlib import Path

from perdure.cli import main

FINE_TUNED = ["--set", "method.name=finetune", "--set", "rules.tolerance=1"]


def run(*words: object) -> None:
    """A command of Perdure, shown and run."""
    said = [str(word) for word in words]
    print("$ perdure", *said, flush=True)
    main(said)


def teach(
    name: str, files: Sequence[Path], store: Path, recipe: Sequence[object], settings: Sequence[str] = ()
) -> None:
    """A store of all files, one update each, and beside it one that is fine-tuned and promotes whatever comes."""
    for title, own in ((name, settings), ("fine-tuned", FINE_TUNED)):
        run("init", title, "--store", store, *recipe, "--data", files[0], *own)
        for file in files[1:]:
            run("update", title, "--store", store, file, "--accept-shift")
        run("history", title, "--store", store, "--report", store.parent / f"{title}.html")
