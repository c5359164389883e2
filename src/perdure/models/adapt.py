"""A network of the user's own, given a head that grows."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perdure.batch import Columns
from perdure.models import output
from perdure.models.head import Head

COUNTERS = ("num_labels", "num_classes")  # as Hugging Face and timm call their number of rows
MASKED = -1e4  # no network scores that low: this is what masks are made of, where they are not infinite


class Adapted(nn.Module):
    """A user's network whose output layer, at `path`, is a Head; `classes` are the labels of its first rows, in order.

    A dict of inputs goes to the network by name where its forward takes these names, else as one dict. What comes back
    may be the scores, an object with `.logits`, a dict with "logits", or a tuple of which one part is scores.

    Shapes: forward gives [n, columns]; features [n, features] are what the head is called on. Raises RuntimeError
    when the network calls its head other than once, TypeError when it doesn't return one score per column, and
    ValueError when it masks them.
    """

    recipe: None = None

    def __init__(
        self, network: nn.Module, path: str, classes: tuple[int | str, ...], counters: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.network = network
        self.path = path
        self.classes = classes
        self.training = network.training
        self._counters = counters
        self._looked_at = 0
        self._tell_width()

    @property
    def head(self) -> Head:
        """The output layer; it lives inside `network` and is registered only there."""
        head = self.network.get_submodule(self.path)
        assert isinstance(head, Head)
        return head

    def grow(self, columns: int, generator: torch.Generator) -> None:
        """Open columns of the head until there are `columns` in total."""
        self.head.grow(columns, generator)
        self._tell_width()

    def features(self, x: Columns) -> Tensor:
        """What the head sees: [n, features]."""
        seen: list[Tensor] = []

        def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
            seen.append(inputs[0])

        with self.head.register_forward_pre_hook(look):
            self._ask(x)
        if len(seen) != 1:
            raise RuntimeError(
                f"the network called its head {self.path!r} {len(seen)} times in one pass, expected once"
            )
        return seen[0]

    def forward(self, x: Columns) -> Tensor:
        """Raw scores of every class known so far: [n, columns]."""
        answer = self._ask(x)
        scores = _scores(answer, self.head.columns)
        if scores is None:
            shape = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise TypeError(
                f"the network returned {shape}, expected the scores of its head {self.path!r}, "
                f"[n, {self.head.columns}], alone, as .logits, or as one part of a tuple; "
                "wrap it in a module that returns these"
            )
        if self._looked_at != self.head.columns and not torch.compiler.is_compiling():
            self._refuse_masked(scores)
        return scores

    def _ask(self, x: Columns) -> Any:
        config = _config(self.network)
        if config is not None and config.num_labels != self.head.columns:
            self._tell_width()  # a learner went back to a save point, which knows modules, and no configuration
        return self.network(**x) if isinstance(x, dict) and _by_name(self.network, x) else self.network(x)

    def _refuse_masked(self, scores: Tensor) -> None:
        """Once for each width, as it waits for the device."""
        try:
            masked = (~scores.detach().isfinite() | (scores.detach() < MASKED)).any(0)
            found = masked.nonzero()[:, 0].tolist()
        except RuntimeError:  # under vmap nothing can be read
            return
        if found and len(found) < self.head.columns:
            raise ValueError(
                f"the network's scores of columns {', '.join(map(str, found))} are masked, or are not finite. Scores "
                "must be raw: take the mask out of its forward; which columns a row may answer is known to the learner"
            )
        self._looked_at = self.head.columns

    def _tell_width(self) -> None:
        """Keeps what the network says of its own width true: attributes that counted the rows, and its config."""
        for name in self._counters:
            setattr(self.network, name, self.head.columns)
        config = _config(self.network)
        names = getattr(config, "id2label", None)
        if isinstance(names, dict):
            known = {i: names[i] for i in range(self.head.columns) if i in names}
            given = {i: str(label) for i, label in enumerate(self.classes)}
            told = {i: given.get(i, known.get(i, f"LABEL_{i}")) for i in range(self.head.columns)}
            config.id2label, config.label2id = told, {label: i for i, label in told.items()}
        if config is not None and config.num_labels != self.head.columns:
            config.num_labels = self.head.columns


def adapt(module: nn.Module, head: str | None = None, classes: Sequence[int | str] | None = None) -> Adapted:
    """Give a network of your own a head that grows, in place of the nn.Linear at the dotted path `head`.

    `classes` are the labels of the old layer's rows, in order: its weights stay, as the same parameters, and the
    outputs are bit for bit what they were. Without `classes` the old layer is dropped for an empty head. Nothing else
    of the network changes, but that `num_labels`, `num_classes` and a Hugging Face `config` are kept true. `head=None`
    takes what `get_classifier()` names, or the last nn.Linear if it is called as output layers are (fc, head,
    classifier, classifier.N, heads.head, score, ...).

    Raises ValueError for a path that is wrong, a layer that is tied or shared, or classes that don't fit, TypeError for
    a layer or label of a wrong kind: a 1x1 convolution, a parametrized layer.
    """
    path = output.found(module) if head is None else head
    old = output.linear_at(module, path)
    if classes is None:
        new = Head(old.in_features).to(old.weight)
        if old.bias is None:
            new.biases = nn.ParameterList()
    else:
        output.check_classes(classes, path, old.out_features)
        new = Head(old.in_features, first=old)
    new.training = old.training
    counted = (getattr(module, name, None) for name in COUNTERS)
    counters = tuple(name for name, count in zip(COUNTERS, counted, strict=True) if count == old.out_features)
    module.set_submodule(path, new)
    return Adapted(module, path, tuple(classes or ()), counters)


def _by_name(network: nn.Module, x: dict[str, Tensor]) -> bool:
    """Whether the network's forward takes the columns of x as arguments of their own.

    Raises TypeError where it takes some of them only.
    """
    parameters = inspect.signature(network.forward).parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    needed = {p.name for p in parameters if p.name in named and p.default is p.empty}
    rest = any(p.kind == p.VAR_KEYWORD for p in parameters)
    if rest or x.keys() <= named:
        return needed <= x.keys() and bool(named or rest)
    if named & x.keys():
        raise TypeError(
            f"{type(network).__name__}.forward takes {', '.join(sorted(named))}, and x also holds "
            f"{', '.join(sorted(x.keys() - named))}; leave it out of x"
        )
    return False


def _scores(answer: Any, columns: int) -> Tensor | None:
    """The scores in what a network returned, if they can be told."""
    if isinstance(answer, Mapping):
        answer = answer.get("logits")
    elif not isinstance(answer, Tensor):
        answer = getattr(answer, "logits", answer)
    parts = answer if isinstance(answer, tuple | list) else (answer,)
    fitting = [part for part in parts if isinstance(part, Tensor) and part.dim() == 2 and part.shape[1] == columns]
    return fitting[0] if len(fitting) == 1 else None


def _config(network: nn.Module) -> Any:
    """A Hugging Face configuration, or None."""
    config = getattr(network, "config", None)
    return config if isinstance(getattr(config, "num_labels", None), int) else None
