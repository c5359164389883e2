"""Keras models, `.keras` files of TensorFlow among them, taught by Perdure and written back: Keras 3 on torch."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perdure import models
from perdure.checkpoint import replace_file
from perdure.data import Columns, Label, column_list
from perdure.learner import Learner
from perdure.method import overrides
from perdure.models.adapt import Adapted
from perdure.seeds import seeded

_BACKEND = "set KERAS_BACKEND=torch before importing keras"
try:
    import keras
except ImportError as reason:
    raise ImportError(f"Keras cannot be imported ({reason}): pip install 'perdure[keras]', and {_BACKEND}") from reason
if keras.config.backend() != "torch":
    raise ImportError(f"Keras runs on {keras.config.backend()} here, and Perdure needs torch: {_BACKEND}")

CODE = {"Lambda", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"}  # layers that a file holds as code
ACTIVATIONS = {"classification": "softmax", "multi-label": "sigmoid", "regression": "linear"}
CONFIG_BYTES = 64 << 20


class Body(nn.Module):
    """All layers of a Keras model below its head, as one torch module: [n, ...] -> [n, features].

    The weights are this module's own parameters, and what is not trained (statistics of batch norm, states of seed
    generators, frozen weights) its buffers; Keras is given them at each call. So whatever swaps a torch module's
    tensors (`torch.func.functional_call`) or its mode (`train()`) does here what it says. A Keras model itself ignores
    both. Names are numbers and Keras's own words, "0_kernel", so that they don't depend on names given by counting.
    """

    def __init__(self, graph: keras.Model) -> None:
        super().__init__()
        self.graph = (graph,)  # in a tuple, or torch would register its parameters here a second time
        self.trained: list[str] = []
        self.kept: list[str] = []
        for number, variable in enumerate([*graph.trainable_variables, *graph.non_trainable_variables]):
            name, value = f"{number}_{variable.name}", variable.value.detach().clone()
            if number < len(graph.trainable_variables):
                self.trained.append(name)
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.kept.append(name)
                self.register_buffer(name, value)

    @property
    def running_mean(self) -> Tensor | None:
        """The first running mean of batch norm, if there is any: by this name methods tell who keeps statistics."""
        return next((getattr(self, name) for name in self.kept if name.endswith("_moving_mean")), None)

    def forward(self, x: Columns) -> Tensor:
        """What the head sees. In train mode statistics and seed generators move."""
        trained = [getattr(self, name) for name in self.trained]
        kept = [getattr(self, name) for name in self.kept]
        with keras.device(str(column_list(x)[0].device)):
            features, moved = self.graph[0].stateless_call(trained, kept, x, training=self.training)
        if self.training:
            with torch.no_grad():
                for before, now in zip(kept, moved, strict=True):
                    if now is not before:
                        before.copy_(now)
        found: Tensor = features
        return found

    def values(self) -> Iterator[tuple[Any, Tensor]]:
        """Each variable of Keras and what it is now."""
        graph = self.graph[0]
        variables = [*graph.trainable_variables, *graph.non_trainable_variables]
        for variable, name in zip(variables, [*self.trained, *self.kept], strict=True):
            yield variable, getattr(self, name)

    def reseed(self, seed: int) -> None:
        """Begins every seed generator anew."""
        for number, name in enumerate(self.kept):
            if name.endswith("_seed_generator_state"):
                state = getattr(self, name)
                state.copy_(torch.tensor([seeded(seed, "keras", number) % 2**31, 0]))


@dataclass(frozen=True)
class Origin:
    """A copy of the Keras model that was adapted, and which of its layers are the head."""

    model: Any
    head: Any
    activation: Any  # the layer after the head that is an activation, or None
    linear: bool  # whether the model answers raw scores


class KerasNetwork(Adapted):
    """A Keras model whose last Dense is a Head; see `adapt`."""

    def __init__(self, adapted: Adapted, origin: Origin) -> None:
        super().__init__(adapted.network, adapted.path, adapted.classes)
        self.origin = origin
        self.seeded = False

    @property
    def body(self) -> Body:
        """What lies below the head."""
        body = self.network.get_submodule("body")
        assert isinstance(body, Body)
        return body

    def grow(self, columns: int, generator: torch.Generator) -> None:
        """Open columns of the head; before the first of them the seed generators begin anew, from `generator`'s seed.

        For Keras gives a layer that names no seed another one in each process.
        """
        if not self.seeded:
            self.body.reseed(generator.initial_seed())
            self.seeded = True
        super().grow(columns, generator)


def load(
    path: str | os.PathLike[str],
    classes: Sequence[Label] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> KerasNetwork:
    """A network for `Learner(model=...)` from a `.keras` file, written by TensorFlow, Perdure or any other Keras 3.

    `classes` are the labels of the last layer's columns, in order; None takes those that `save` wrote beside the file.
    `custom_objects` are the user's own layers by name. Nothing is unpickled. Raises ValueError for a file of another
    format, one that holds code (Lambda layers), or a model that `adapt` does not take.
    """
    path = Path(path)
    _refuse_code(_config(path), str(path))
    model = keras.saving.load_model(path, custom_objects=dict(custom_objects or {}), compile=False, safe_mode=True)
    return adapt(model, _beside(path) if classes is None else classes)


def adapt(model: keras.Model, classes: Sequence[Label] | None = None) -> KerasNetwork:
    """A network for `Learner(model=...)` from a Functional or Sequential model: its last Dense is a head that grows.

    `classes` are the labels of the head's columns, in order: its weights stay, and the scores are what they were.
    Without `classes` the old layer is dropped for an empty head. A softmax or sigmoid, in the last Dense or as a layer
    after it, is cut off, so that scores are raw, and put back by `save`; one column with a sigmoid and two classes
    becomes two columns. The Keras model that was given is copied and stays as it is. Layers with `trainable=False` stay
    frozen. Rows are as Keras has them: images [n, height, width, channels].

    Raises TypeError or ValueError for a model whose head cannot be found or would not come back the same.
    """
    copy = _copied(model)
    origin = _origin(copy)
    head = origin.head
    if len(head.input.shape) != 2:
        raise ValueError(
            f"the last Dense, {head.name!r}, sees {head.input.shape}: a head takes one vector a row, so pool or "
            "flatten before it"
        )
    kernel = head.kernel.value.detach().T.clone(memory_format=torch.contiguous_format)
    bias = head.bias.value.detach().clone() if head.use_bias else None
    if classes is not None and len(kernel) == 1 and len(classes) == 2:  # sigmoid(s) = softmax(0, s)
        kernel = torch.cat([torch.zeros_like(kernel), kernel])
        bias = None if bias is None else torch.cat([torch.zeros_like(bias), bias])
    linear = nn.Linear(kernel.shape[1], len(kernel), bias=bias is not None, device="meta")  # draws nothing
    linear.weight = nn.Parameter(kernel)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    body = Body(keras.Model(copy.inputs, head.input))
    network = nn.Sequential(OrderedDict(body=body, head=linear))
    return KerasNetwork(models.adapt(network, "head", classes), origin)


def save(learner: Learner, path: str | os.PathLike[str]) -> list[Any]:
    """Writes what was learnt as a `.keras` file that TensorFlow loads; gives what each column stands for.

    The last Dense has all columns: in scenario "class" those of `learner.classes`, in order. Where the model ended in
    a softmax or sigmoid, the file ends in what the learner answers with: softmax, for multi-label sigmoid. The
    columns' meanings are written beside it, to NAME.classes.json. The model in the file is not compiled. Raises
    TypeError for a learner whose model is not of Keras, ValueError for a method that answers with more than its network
    and for a path that does not end in .keras.
    """
    path, network = Path(path), learner.model
    if not isinstance(network, KerasNetwork):
        raise TypeError(f"the learner's model is a {type(network).__name__}: save takes one of keras.load or adapt")
    if path.suffix != ".keras":
        raise ValueError(f"{path} must end in .keras, which is how Keras tells its format")
    if overrides(learner.method, "predict"):
        raise ValueError(
            f"{learner.method.name} answers with more than its network, which a .keras file cannot hold: a model "
            "alone would answer differently"
        )
    model = _grown(network, ACTIVATIONS[learner.objective.name])
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, path.name))
        content = Path(folder, path.name).read_bytes()
    replace_file(path, content)
    about = {"classes": learner.classes, "columns": learner.meanings, "scenario": learner.settings.scenario}
    replace_file(_classes_file(path), json.dumps(about, ensure_ascii=False, indent=1).encode())
    return learner.meanings


# ---- files ----


def _config(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with suppress(zipfile.BadZipFile, KeyError, ValueError):
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo("config.json").file_size <= CONFIG_BYTES:
                    return json.loads(archive.read("config.json"))
    raise ValueError(f"{path} is not a whole .keras file of Keras 3: in TensorFlow say model.save('NAME.keras')")


def _refuse_code(config: Any, what: str) -> None:
    """Whatever Keras's own settings say: they can be set to run such code."""
    if isinstance(config, dict):
        if config.get("class_name") in CODE:
            raise ValueError(
                f"{what} holds a {config['class_name']} layer, which is code that would run when it is loaded: "
                "write it as a layer of your own, or with keras.ops"
            )
        config = list(config.values())
    if isinstance(config, list | tuple):
        for part in config:
            _refuse_code(part, what)


def _classes_file(path: Path) -> Path:
    return path.with_suffix(".classes.json")


def _beside(path: Path) -> list[Label]:
    file = _classes_file(path)
    if not file.is_file():
        raise ValueError(f"which labels do the last layer's columns stand for? Pass classes=[...] (there is no {file})")
    columns: list[Label] = json.loads(file.read_text())["columns"]
    if not all(isinstance(label, int | str) for label in columns):
        raise ValueError(f"the columns of {path} have other labels in each task, see {file}: pass classes=[...]")
    return columns


# ---- models ----


def _copied(model: keras.Model) -> Any:
    """The same model with variables of its own, each layer called as often as the graph has it."""
    kind = type(model).__name__
    if not (isinstance(model, keras.Sequential) or hasattr(model, "operations")):
        raise TypeError(
            f"{kind} is not a Functional or Sequential model, so its head cannot be found nor written back: build it "
            "as keras.Model(inputs, outputs)"
        )
    if not model.built:
        raise ValueError(f"this {kind} has no weights yet: give it a keras.Input, or call it once")
    _refuse_code(keras.saving.serialize_keras_object(model), f"the model {model.name!r}")
    outputs = getattr(model, "outputs", None) or []  # there are none where Keras could not follow a layer
    if len(outputs) != 1:
        raise ValueError(f"the model has {len(outputs)} known outputs, and a head that grows is one: take one of them")
    for layer in model.layers:
        if layer.dtype_policy.compute_dtype != "float32" or layer.dtype_policy.quantization_mode is not None:
            raise ValueError(
                f"the layer {layer.name!r} computes in {layer.dtype_policy.name}, and its scores would not come back "
                "the same: only float32 is taken (Learner(precision='bf16') learns faster)"
            )
    return _with_weights(keras.models.clone_model(model), {id(v): v.value for v in model.variables}, model)


def _with_weights(clone: Any, values: dict[int, Tensor], model: Any) -> Any:
    """`clone` with the values of the variables of `model`, given by their ids."""
    pairs = list(zip(model.variables, clone.variables, strict=False))
    alike = all(tuple(values[id(old)].shape) == tuple(new.shape) for old, new in pairs)
    if len(model.variables) != len(clone.variables) or not alike:
        raise ValueError(
            f"{model.name!r} cannot be made again from its configuration: does a layer share a variable with another, "
            "or does get_config leave out what makes its variables?"
        )
    for old, new in pairs:
        new.assign(values[id(old)].detach())
    return clone


def _origin(model: Any) -> Origin:
    """Which layers of the copied model are the head."""
    output = model.outputs[0]
    layers = {id(layer.output): layer for layer in model.layers}  # the output of the first call
    last: Any = layers.get(id(output))
    activation = last
    if isinstance(last, keras.layers.Activation | keras.layers.Softmax):
        last = layers.get(id(last.input))
    else:
        activation = None
    if type(last) is not keras.layers.Dense:
        found = ", ".join(f"{layer.name} ({type(layer).__name__})" for layer in model.layers[-3:])
        raise ValueError(
            "the model must end in a Dense of its own that is called once, with an activation after it or not; it ends "
            f"in {found}" + ("; take the layers of the nested model out" if isinstance(last, keras.Model) else "")
        )
    if last.lora_enabled:
        raise ValueError(f"the last Dense, {last.name!r}, has LoRA, so that it has no weights of its own to grow")
    names = [_activation(last)] + ([] if activation is None else [_activation(activation)])
    if not set(names) <= {"linear", "softmax", "sigmoid"} or len(set(names) - {"linear"}) > 1:
        raise ValueError(
            f"the last Dense, {last.name!r}, has the activation {' and '.join(names)}: scores must be raw, and only a "
            "softmax or a sigmoid can be cut off and put back"
        )
    return Origin(model, last, activation, linear=set(names) == {"linear"})


def _activation(layer: Any) -> str:
    if isinstance(layer, keras.layers.Softmax):
        return "softmax" if layer.axis in (-1, 1) else f"softmax along {layer.axis}"
    name: str = getattr(layer.activation, "__name__", str(layer.activation))
    return name


def _grown(network: KerasNetwork, answer: str) -> Any:
    """The Keras model with as many columns as the head, and its weights as they are."""
    origin, head = network.origin, network.head

    def anew(layer: Any) -> Any:
        config = layer.get_config()
        if layer is origin.head:
            config["units"] = head.columns
            if not origin.linear:
                config["activation"] = answer if origin.activation is None else "linear"
        if layer is origin.activation and _activation(layer) not in ("linear", answer):
            return keras.layers.Activation(answer, name=layer.name)
        return type(layer).from_config(config)

    values = {id(variable): value.detach() for variable, value in network.body.values()}
    values[id(origin.head.kernel)] = torch.cat(list(head.weights))[: head.columns].detach().T
    if origin.head.use_bias:
        values[id(origin.head.bias)] = torch.cat(list(head.biases))[: head.columns].detach()
    return _with_weights(keras.models.clone_model(origin.model, clone_function=anew), values, origin.model)
