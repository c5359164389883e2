"""The house: imports go down the floors, nothing is too large, and what must not be written is not."""

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "perdure"
FILES = sorted(ROOT.rglob("*.py"))

# Each room may import from the floors below its own, and from no other. `perdure/__init__.py` is the door to all.
FLOORS = [
    {"seeds", "spelling", "batch", "checkpoint", "fields", "clock", "lock"},
    {"sources", "optim", "augment", "corruptions", "journal", "disk", "sealed"},
    {"data"},
    {"objective", "models", "memory", "labels", "datasets"},
    {"streams", "importance", "structure", "several"},
    {"method"},
    {"host", "training", "callbacks", "inference"},
    {"answers", "budget"},
    {"methods", "metrics", "checks", "offers"},
    {"state", "clinical", "lists"},
    {"learner"},
    {"report", "recipes", "integrations"},
    {"experiment", "store"},
    {"service"},
    {"cli_store"},
    {"cli_serve"},
    {"cli"},
]

FUNCTION_LINES, FILE_LINES, METHOD_FILE_LINES = 50, 400, 150
NOT_A_METHOD = {"__init__.py"}
PRINTS = {"cli.py", "cli_serve.py", "cli_store.py"}
SEEDS_TORCH = {"state.py", "models/head.py"}  # each gives torch's global generators back as they were

DRAWS = {
    "rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson", "rand_like", "randn_like",
    "randint_like", "uniform_", "normal_", "bernoulli_", "random_", "exponential_", "geometric_", "cauchy_",
    "log_normal_", "trunc_normal_",
}  # fmt: skip
SEEDS = {"manual_seed", "manual_seed_all", "seed", "set_rng_state", "set_rng_state_all", "fork_rng"}


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def for_types_only(tree: ast.Module) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING:`."""
    guarded = (
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    )
    return {inner for node in guarded for statement in node.body for inner in ast.walk(statement)}


def imported(tree: ast.Module) -> Iterator[str]:
    """The rooms that a file imports, at its top or inside a function."""
    unreal = for_types_only(tree)
    for node in ast.walk(tree):
        if node in unreal:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            names = [node.module] if node.module != "perdure" else [f"perdure.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("perdure."))


def upward(room: str, tree: ast.Module) -> list[str]:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    return [f"{room} imports {name}" for name in imported(tree) if name != room and floor[name] >= floor[room]]


def functions(tree: ast.AST, within: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods by their full name; not those defined inside another."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield within + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{within}{node.name}.")


def classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def public(name: str) -> bool:
    return not any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def is_generator_given(call: ast.Call) -> bool:
    return any(keyword.arg == "generator" for keyword in call.keywords)


def forbidden(name: str, tree: ast.Module) -> Iterator[str]:
    """Sentences about what must not be written, in a file of that name."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (f"imports {m}" for m in modules if m.split(".")[0] in ("pickle", "random", "dill", "joblib"))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("np.random.", "numpy.random.")):
            yield f"line {node.lineno} draws from NumPy: {ast.unparse(node)}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rsplit(".", 1)[-1]
        at = f"line {node.lineno}: {called}()"
        if called == "print" and name not in PRINTS:
            yield f"{at} prints"
        if called in ("torch.load", "torch.save", "eval", "exec", "hash"):
            yield f"{at} is a pickle, runs code, or differs from process to process"
        own = called.startswith("torch.Generator(")
        if called.startswith("torch.") and last in SEEDS and not own and name not in SEEDS_TORCH:
            yield f"{at} seeds torch's global generator"
        if isinstance(node.func, ast.Attribute) and last in DRAWS and not is_generator_given(node):
            yield f"{at} draws from torch's global generator: pass generator="
        if called.startswith(("nn.init.", "torch.nn.init.", "init.")) and not is_generator_given(node):
            yield f"{at} draws from torch's global generator: pass generator="
    for full, function in functions(tree):
        if function.args.kwarg is not None and public(full):
            yield f"{full} takes **{function.args.kwarg.arg}: name what it takes"
    yield from (
        f"class {c.name} has no docstring" for c in classes(tree) if public(c.name) and not ast.get_docstring(c)
    )
    if not ast.get_docstring(tree) and tree.body:
        yield "does not open with a sentence that says what it is for"


# ---- the house ----


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in FILES} - {"__init__", "assets"}
    known = [name for names in FLOORS for name in names]
    assert len(known) == len(set(known))
    assert rooms - set(known) == set(), "give the new room a floor, as low as it can stand"
    assert set(known) - rooms == set(), "a floor for a room that is gone"


def test_imports_go_down_only():
    found = [line for path in FILES if room_of(path) != "__init__" for line in upward(room_of(path), parsed(path))]
    assert found == []


def test_asking_for_the_version_does_not_import_torch():
    assert set(imported(parsed(ROOT / "__init__.py"))) == set()
    assert "torch" not in {getattr(node, "module", "") for node in ast.walk(parsed(ROOT / "cli.py"))}


@pytest.mark.parametrize("path", FILES, ids=where)
def test_nothing_forbidden_is_written(path):
    assert list(forbidden(where(path), parsed(path))) == []


def sizes() -> Iterator[tuple[str, int, int]]:
    """What, how many lines, and how many it should have at most."""
    for path in FILES:
        is_method = path.parent.name == "methods" and path.name not in NOT_A_METHOD
        yield where(path), len(path.read_text().splitlines()), METHOD_FILE_LINES if is_method else FILE_LINES
        for name, node in functions(parsed(path)):
            yield f"{where(path)}: {name}", node.end_lineno - node.lineno + 1, FUNCTION_LINES


def test_nothing_is_half_as_large_again_as_it_should_be():
    large = [f"{what} has {lines} lines, {most} are enough" for what, lines, most in sizes() if lines > most]
    if large:
        warnings.warn("; ".join(large), stacklevel=1)
    assert [f"{what}: {lines}" for what, lines, most in sizes() if lines > 1.5 * most] == []


# ---- the checks check ----


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("data.py", "print(1)"),
        ("data.py", "import pickle"),
        ("data.py", "from random import shuffle"),
        ("data.py", "import numpy as np\nnp.random.default_rng(0)"),
        ("data.py", "torch.load('x')"),
        ("state.py", "torch.rand(3)"),
        ("data.py", "torch.manual_seed(0)"),
        ("data.py", "torch.default_generator.manual_seed(0)"),
        ("data.py", "torch.randperm(3, device='cpu')"),
        ("data.py", "x.normal_(0, 1)"),
        ("data.py", "nn.init.xavier_uniform_(w)"),
        ("data.py", "def f(**kwargs): ..."),
        ("data.py", "class A:\n '''x'''\n def f(self, **settings): ..."),
        ("data.py", "class A: ..."),
        ("data.py", "hash('x')"),
    ],
)
def test_what_is_forbidden_is_found(name, code):
    assert len(list(forbidden(name, ast.parse(f"'''A room.'''\n{code}")))) == 1


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("cli.py", "print(1)"),
        ("data.py", "console.print(1)"),
        ("data.py", "torch.randperm(3, generator=draws)"),
        ("data.py", "draws.manual_seed(3); torch.Generator().manual_seed(4)"),
        ("data.py", "def _f(**kwargs): ..."),
        ("data.py", "class _A: ..."),
        ("state.py", "torch.set_rng_state(s)"),
    ],
)
def test_what_is_allowed_is_not(name, code):
    assert list(forbidden(name, ast.parse(f"'''A room.'''\n{code}"))) == []


def test_an_upward_import_is_found_wherever_it_stands():
    for code in (
        "from perdure import learner",
        "import perdure.learner",
        "def f():\n from perdure.learner import Learner",
    ):
        assert upward("method", ast.parse(code)) == ["method imports learner"]
    assert upward("host", ast.parse("from perdure.training import Cost")) == ["host imports training"]
    assert upward("method", ast.parse("if TYPE_CHECKING:\n from perdure.learner import Learner")) == []
    assert upward("learner", ast.parse("from perdure import method, data\nimport torch\nimport perdure")) == []
