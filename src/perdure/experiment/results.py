"""The results of an experiment as one file, results.json: its shape (schema 1), reading and writing it."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from perdure.checkpoint import replace_file
from perdure.experiment.settings import RequestError

SCHEMA = 1
Scenario = Literal["task", "domain", "class"]
Row = list[float | None]


class _Part(BaseModel):
    """A part of the file: no key that is not named here, no number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BenchmarkPart(_Part):
    """What was learnt: the stream, its protocol in a sentence, its tasks and their sizes in rows."""

    name: str
    settings: dict[str, Any]
    description: str
    tasks: list[str]
    train_rows: list[NonNegativeInt]
    test_rows: list[NonNegativeInt]


class MetricsPart(_Part):
    """The numbers of one accuracy matrix; null where a metric is not defined. Definitions: `perdure.metrics`."""

    average_accuracy: float | None
    average_incremental_accuracy: float | None
    forgetting: float | None
    backward_transfer: float | None
    forward_transfer: float | None
    learning_accuracy: float | None
    intransigence: float | None
    minimum_accuracy: float | None
    worst_case_accuracy: float | None


class EvaluationPart(_Part):
    """One evaluation inside a task: after `step`, while task number `task` is learnt."""

    step: NonNegativeInt
    task: NonNegativeInt
    accuracy: Row


class SamplesPart(_Part):
    """What a generator made after a task, as a classifier of everything saw it; `picture`: 64 samples, PNG in base64.

    `confidence` is the mean of its greatest probability, `balance` the share of each label among its answers.
    """

    task: str
    confidence: float
    balance: dict[str, float]
    picture: str | None


class ParametersPart(_Part):
    """How many parameters a task brought to progressive networks: its column with the head, adapters, both together
    (`trained`); those of earlier tasks, frozen meanwhile; all.
    """

    task: str
    column: NonNegativeInt
    adapters: NonNegativeInt
    trained: NonNegativeInt
    frozen: NonNegativeInt
    total: NonNegativeInt


class SharedPart(_Part):
    """How many of PathNet's modules the paths of two tasks have in common, a number a layer; of one task: all of it."""

    first: str
    second: str
    modules: list[NonNegativeInt]


class CellPart(_Part):
    """One method in one scenario with one seed. `inferred`: average accuracy where the task is inferred, by way.

    `accuracy[i][j]` is the accuracy on task j after learning task i. Where training broke off for good (`complete` is
    false), there are only the rows until then, and no metrics. `looked`: numbers of one's own, after each task.
    `parameters`, `shared` and `looked` stand only where there are any: a file without is one that earlier versions
    read.
    """

    method: str
    title: str
    upper_bound: bool
    scenario: Scenario
    seed: int
    settings: dict[str, Any]
    complete: bool
    initial: Row | None
    accuracy: list[Row]
    metrics: MetricsPart | None
    trace: list[EvaluationPart] | None
    inferred: dict[str, float] | None = None
    samples: list[SamplesPart] | None = None
    parameters: list[ParametersPart] | None = None
    shared: list[SharedPart] | None = None
    looked: dict[str, list[float | None]] | None = None
    steps: NonNegativeInt
    multiply_adds: NonNegativeInt
    parameter_bytes: NonNegativeInt
    memory_bytes: NonNegativeInt


class MachinePart(_Part):
    """What the numbers under `measured` were measured on."""

    platform: str
    processor: str
    cores: int
    threads: int
    memory_bytes: int | None
    python: str
    torch: str
    device: str


class SecondsPart(_Part):
    """What one cell took, added up over the pieces in which it ran."""

    method: str
    scenario: Scenario
    seed: int
    train_seconds: float
    consolidate_seconds: float
    evaluate_seconds: float


class MeasuredPart(_Part):
    """All that differs between two runs of the same experiment: times, the machine, the peak of its memory."""

    started: str
    finished: str
    machine: MachinePart
    peak_resident_bytes: NonNegativeInt
    cells: list[SecondsPart]


class Results(_Part):
    """results.json. Two runs of one experiment differ in `measured` only."""

    version: Literal[1] = Field(alias="schema", serialization_alias="schema")
    perdure: str
    name: str
    benchmark: BenchmarkPart
    config: dict[str, Any]
    cells: list[CellPart]
    measured: MeasuredPart

    def seconds(self, cell: CellPart) -> SecondsPart | None:
        """What the cell took."""
        key = (cell.method, cell.scenario, cell.seed)
        return next((part for part in self.measured.cells if (part.method, part.scenario, part.seed) == key), None)

    def write(self, path: Path) -> None:
        """The file, whole or not at all."""
        document = self.model_dump(mode="json", by_alias=True)
        for cell in document["cells"]:
            for name in ("parameters", "shared", "looked"):
                if cell[name] is None:
                    del cell[name]
        text = json.dumps(document, indent=1, allow_nan=False)
        replace_file(path, f"{text}\n".encode())

    @classmethod
    def read(cls, path: Path) -> "Results":
        """The results in a file, or in the folder of a run; a RequestError says why it can't be read."""
        file = path / "results.json" if path.is_dir() else path
        if not file.exists():
            raise RequestError(f"{file} does not exist; give the folder of a run, or its results.json")
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RequestError(f"{file} is not JSON: {error}") from None
        found = document.get("schema") if isinstance(document, dict) else None
        if isinstance(found, int) and found > SCHEMA:
            raise RequestError(f"{file} has schema {found}, and this perdure reads up to {SCHEMA}; upgrade perdure")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            places = ", ".join(".".join(str(part) for part in item["loc"]) or "the file" for item in error.errors()[:3])
            raise RequestError(f"{file} is not a results file of schema {SCHEMA}: look at {places}") from None


def schema() -> str:
    """The JSON Schema of results.json, as docs/results.schema.json has it."""
    return json.dumps(Results.model_json_schema(mode="serialization"), indent=2) + "\n"
