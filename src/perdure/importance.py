"""How much each parameter matters to the answers: diagonal Fisher and MAS from per-row gradients, and their oracle."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from perdure.data import Columns, column_length, column_map
from perdure.models.head import Head
from perdure.models.lookups import Lookups, Table, embedding
from perdure.models.modes import evaluating

Probes = Callable[[Tensor], Iterator[Tensor]]
Chunks = Iterable[tuple[Columns, Probes]]
Kind = Literal["square", "absolute"]
Sums = dict[str, Tensor]


def diagonal(
    model: nn.Module,
    chunks: Chunks,
    *,
    kind: Kind,
    names: Collection[str] | None = None,
    max_bytes: int = 64 << 20,
    check: bool = True,
) -> Sums:
    """The mean over all rows of sum over probes v of (v^T ds/dtheta)^2 or |v^T ds/dtheta|, s being a row's raw scores.

    Exact Fisher (Kirkpatrick et al. 2017): kind "square", a probe sqrt(p_c) (e_c - p) for each class c. Sampled or
    empirical Fisher: one probe e_y - p. MAS (Aljundi et al. 2018): kind "absolute", one probe 2 s, since it
    differentiates the squared length of s.

    `chunks` are pairs of inputs x (n rows) and a function from their scores [n, C] to probes [n, C]. It is called with
    all rows of the chunk, and one probe is held at a time. Returns a tensor like each trainable parameter (in `names`,
    where given): zero where the scores do not depend on it; a tied parameter stands once, under its first name.

    Where every parameter belongs to one linear layer that is called once on one vector per row, or to one embedding, a
    chunk costs one forward, one backward per probe without weight gradients, and one product per layer; of an embedding
    only the vectors that the rows look up are touched: those of ids never seen are 0. Everywhere else each row's own
    gradient is formed, as many rows at a time as fit into `max_bytes`. With `check`, two rows of the first chunk are
    compared with `diagonal_by_hand`; on a difference, or an error, the call warns and goes on by hand.

    The model runs in eval mode and gets its modes back; buffers, `.grad`, `requires_grad` and random generators stay
    as they are. Raises ValueError for a name that is no trainable parameter, and where there is no row.
    """
    survey = _survey(model, kind, names, max_bytes)
    return _mean(survey, chunks, survey.fast, check)


def diagonal_by_hand(model: nn.Module, chunks: Chunks, *, kind: Kind, names: Collection[str] | None = None) -> Sums:
    """What `diagonal` returns, by one forward and one backward for each row and probe: slow, and true of any model."""
    survey = _survey(model, kind, names, max_bytes=0)
    return _mean(survey, chunks, survey.by_hand, check=False)


def _mean(survey: _Survey, chunks: Chunks, path: Callable[[Columns, Probes], Sums], check: bool) -> Sums:
    """Adds up what `path` says of each chunk and divides by the rows; once `path` has failed, all goes by hand."""
    total, rows = survey.zeros(), 0
    if not total:
        return total
    with _examined(survey.model):
        for x, probes in chunks:
            try:
                if check:
                    survey.compare(path, x)
                part = path(x, probes)
            except Exception as reason:
                if path == survey.by_hand:
                    raise
                message = f"importances go on by one backward per row and probe, which is slow: {reason}"
                warnings.warn(message, RuntimeWarning, stacklevel=3)
                path = survey.by_hand
                part = path(x, probes)
            check = False
            rows += column_length(x)
            for name, value in part.items():
                total[name] += value
    if rows == 0:
        raise ValueError("importances are a mean over rows, but the chunks held none; pass at least one row")
    return {name: value / rows for name, value in total.items()}


@contextmanager
def _examined(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and transformer layers off their fused path for inference, which has no gradient."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@dataclass(frozen=True)
class _Layer:
    """A linear layer, its weight and bias as blocks: name (None: unwanted), and rows. A growing head has several."""

    module: nn.Module
    weights: list[tuple[str | None, int]]
    biases: list[tuple[str | None, int]]


@dataclass(frozen=True)
class _Call:
    """One call: its inputs, [n, features] or ids [n, ...], and where in the graph the gradient of its outputs arrives.

    A place and not the outputs themselves, which an activation may overwrite.
    """

    inputs: Tensor
    edge: GradientEdge


@dataclass(frozen=True)
class _Survey:
    """What stays the same during one call, and the three paths; each path gives a chunk's sums over its rows.

    `layers` and `tables` hold all that is wanted; both are empty where linear layers and embeddings do not.
    """

    model: nn.Module
    kind: Kind
    wanted: dict[str, nn.Parameter]
    layers: list[_Layer]
    tables: list[Table]
    max_bytes: int

    def zeros(self) -> Sums:
        return {name: torch.zeros_like(p, dtype=_wide(p.dtype), requires_grad=False) for name, p in self.wanted.items()}

    def size(self, gradient: Tensor) -> Tensor:
        gradient = gradient.to(_wide(gradient.dtype))
        return gradient.square() if self.kind == "square" else gradient.abs()

    def fast(self, x: Columns, probes: Probes) -> Sums:
        """The closed form where it holds, else a gradient per row."""
        scores, calls, lookups = self.record(x)
        vectors = probes(scores.detach())
        return self.closed(scores, calls, lookups, vectors) if calls or lookups else self.per_row(x, vectors)

    def record(self, x: Columns) -> tuple[Tensor, list[_Call], list[list[_Call]]]:
        """The scores, the call of each layer and the calls of each table; none unless the closed form holds.

        It does where each layer is called once, on one vector per row, and each table on ids of rows.
        """
        parts = [layer.module for layer in self.layers] + [table.module for table in self.tables]
        with torch.set_grad_enabled(bool(parts)), _recorded(parts, column_length(x)) as calls:
            scores: Tensor = self.model(x)
        plain = [[call for call in found if call is not None] for found in calls]
        once, lookups = plain[: len(self.layers)], plain[len(self.layers) :]
        odd = any(None in found for found in calls) or any(len(found) != 1 for found in once)
        if odd or not scores.requires_grad:
            return scores.detach(), [], []
        return scores, [found[0] for found in once], lookups

    def closed(self, scores: Tensor, calls: list[_Call], lookups: list[list[_Call]], probes: Iterator[Tensor]) -> Sums:
        """sum_v (g_v a^T)^2 = (sum_v g_v^2) (a^2)^T, with a layer's inputs a and the gradients g_v of its outputs."""
        edges = [call.edge for call in (*calls, *itertools.chain(*lookups))]
        sizes: list[Tensor | None] = [None] * len(calls)
        sums, rows = (
            self.zeros(),
            [Lookups.of(t, [call.inputs for call in looked]) for t, looked in zip(self.tables, lookups, strict=True)],
        )
        for probe in probes:
            gradients = list(torch.autograd.grad(scores, edges, probe, retain_graph=True, allow_unused=True))
            for place, gradient in enumerate(gradients[: len(calls)]):
                if gradient is not None:
                    size, before = self.size(gradient), sizes[place]
                    sizes[place] = size if before is None else before.add_(size)
            arrived = iter(gradients[len(calls) :])
            for table, found, looked in zip(self.tables, rows, lookups, strict=True):
                found.add(sums, table.blocks, [next(arrived) for _ in looked], self.size)
        for layer, call, outgoing in zip(self.layers, calls, sizes, strict=True):
            if outgoing is not None:
                _deal(sums, layer.weights, outgoing.T @ self.size(call.inputs))
                _deal(sums, layer.biases, outgoing.sum(0))
        return sums

    @torch.no_grad()  # torch.func differentiates all the same, and nothing outside it is recorded
    def per_row(self, x: Columns, probes: Iterator[Tensor]) -> Sums:
        """Each row's own gradient by torch.func, a few rows at a time."""

        def answer(parameters: dict[str, Tensor], row: Columns, probe: Tensor) -> Tensor:
            scores = torch.func.functional_call(self.model, parameters, (column_map(lambda column: column[None], row),))
            return torch.sum(scores[0] * probe)

        each = torch.func.vmap(torch.func.grad(answer), in_dims=(None, 0, 0))
        row_bytes = sum(p.numel() * p.element_size() for p in self.wanted.values())
        step = max(1, self.max_bytes // max(1, row_bytes))
        sums = self.zeros()
        for probe in probes:
            for start in range(0, len(probe), step):
                part = slice(start, start + step)
                # The fused attentions are not batched by vmap, but looped over.
                with sdpa_kernel(SDPBackend.MATH), _AnyLayout():
                    gradients = each(dict(self.wanted), _rows(x, part), probe[part])
                for name, gradient in gradients.items():
                    sums[name] += self.size(gradient).sum(0)
        return sums

    def by_hand(self, x: Columns, probes: Probes) -> Sums:
        """One forward and one backward for each row and probe."""
        with torch.no_grad():
            scores = self.model(x)
        sums = self.zeros()
        for probe in probes(scores):
            for row in range(len(probe)):
                part = slice(row, row + 1)
                with torch.enable_grad():
                    answer = torch.sum(self.model(_rows(x, part)) * probe[part])
                if not answer.requires_grad:
                    continue
                gradients = torch.autograd.grad(answer, list(self.wanted.values()), allow_unused=True)
                for name, gradient in zip(self.wanted, gradients, strict=True):
                    if gradient is not None:
                        sums[name] += self.size(gradient)
        return sums

    def compare(self, path: Callable[[Columns, Probes], Sums], x: Columns) -> None:
        """Raises ArithmeticError where `path` and `by_hand` differ on two rows, relative to the largest entry.

        A path is linear in the probe until it squares, so one probe with no zero in it speaks for all. The chunk's own
        may be next to zero, and drawing them would move their generator.
        """

        def ramp(scores: Tensor) -> Iterator[Tensor]:
            yield torch.linspace(1, 2, scores.shape[1], dtype=scores.dtype, device=scores.device).expand_as(scores)

        # First and last, as a slice so that nothing is copied and the memory format stays.
        rows = _rows(x, slice(None, None, max(1, column_length(x) - 1)))
        found, expected = path(rows, ramp), self.by_hand(rows, ramp)
        largest = max(float(value.abs().max()) for value in expected.values() if value.numel())
        for name, parameter in self.wanted.items():
            gap = (found[name] - expected[name]).abs().max()
            # Some gradients are 0 but for rounding, as those of the keys' biases in attention: noise of each way.
            noise = 10 * torch.finfo(expected[name].dtype).eps * largest
            limit = max(_tolerance(parameter) * float(expected[name].abs().max()), noise)
            if not gap <= limit:
                raise ArithmeticError(
                    f"on two rows, {name} is {float(gap):.1e} away from the plain backward (limit {float(limit):.1e}); "
                    "is it used outside its own layer too, or do the rows of a batch influence each other?"
                )


_LAYOUT = "memory_format"


class _AnyLayout(TorchFunctionMode):
    """Where memory is laid out otherwise (channels last), no value changes, and vmap knows of no such layout."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.contiguous, Tensor.to, Tensor.clone) and len(args) == 1 and set(kwargs or ()) == {_LAYOUT}:
            return args[0] if func == Tensor.to else func(args[0])
        return func(*args, **(kwargs or {}))


def _survey(model: nn.Module, kind: Kind, names: Collection[str] | None, max_bytes: int) -> _Survey:
    if kind not in ("square", "absolute"):
        raise ValueError(f'kind is {kind!r}, but must be "square" or "absolute"')
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    unknown = sorted(set(names or ()) - set(trainable))
    if unknown:
        raise ValueError(
            f"names holds {unknown}, but the trainable parameters are {list(trainable)}; leave the others out"
        )
    wanted = {name: p for name, p in trainable.items() if names is None or name in names}
    return _Survey(model, kind, wanted, *_layers_and_tables(model, wanted), max_bytes)


def _layers_and_tables(model: nn.Module, wanted: dict[str, nn.Parameter]) -> tuple[list[_Layer], list[Table]]:
    """The linear layers and embeddings that hold all that is wanted, none of it held twice; else nothing."""
    names = {p: name for name, p in wanted.items()}
    holders = Counter(p for module in model.modules() for p in module.parameters(recurse=False) if p in names)
    layers, tables, held = list[_Layer](), list[Table](), set[nn.Parameter]()
    for module in model.modules():
        vectors, place, share = embedding(module)
        if not names.keys().isdisjoint(vectors):
            held.update(vectors)
            tables.append(Table(module, [(names.get(p), len(p)) for p in vectors], place, share))
        if isinstance(module, Head):
            weights, biases = list(module.weights), list(module.biases)
        elif isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            weights, biases = [module.weight], [] if module.bias is None else [module.bias]
        else:
            continue
        if not names.keys().isdisjoint(weights + biases):
            held.update(weights + biases)
            blocks = [[(names.get(p), len(p)) for p in parameters] for parameters in (weights, biases)]
            layers.append(_Layer(module, *blocks))
    alone = all(count == 1 for count in holders.values())
    return (layers, tables) if alone and names.keys() <= held else ([], [])


@contextmanager
def _recorded(parts: list[nn.Module], rows: int) -> Iterator[list[list[_Call | None]]]:
    """Lists the calls of each layer or table; None: a call on anything but one vector per row, or ids of every row."""
    calls: list[list[_Call | None]] = [[] for _ in parts]

    def hook(found: list[_Call | None]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def record(_: nn.Module, inputs: tuple[Any, ...], outputs: Tensor) -> None:
            ids = len(inputs) == 1 and not inputs[0].is_floating_point() and inputs[0].dim() == outputs.dim() - 1
            plain = ids or (len(inputs) == 1 and inputs[0].dim() == outputs.dim() == 2)
            plain = plain and len(outputs) == len(inputs[0]) == rows and outputs.requires_grad
            found.append(_Call(inputs[0].detach(), get_gradient_edge(outputs)) if plain else None)

        return record

    # First of all hooks, to see what the layer itself gives.
    handles = [part.register_forward_hook(hook(found), prepend=True) for part, found in zip(parts, calls, strict=True)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _deal(sums: Sums, blocks: list[tuple[str | None, int]], values: Tensor) -> None:
    """Writes rows of values into the blocks that they belong to; rows that a head has not opened keep their zero."""
    start = 0
    for name, rows in blocks:
        part = values[start : start + rows]
        if name is not None:
            sums[name][: len(part)] = part
        start += rows


def _rows(x: Columns, part: slice) -> Columns:
    return column_map(lambda column: column[part], x)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Sums of squares leave the range and the precision of 16-bit numbers."""
    return torch.promote_types(dtype, torch.float32)


def _tolerance(parameter: Tensor) -> float:
    """1e-4 of the largest entry, and more where numbers are coarser: of 16 bits, or TF32 in convolutions on a GPU."""
    tf32 = 2.0**-10
    return max(1e-4, 20 * max(torch.finfo(parameter.dtype).eps, 0.0 if parameter.device.type == "cpu" else tf32))
