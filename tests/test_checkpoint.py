"""A state on disk comes back bit for bit, or is refused: never something else, whatever happened to the file."""

import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import bits, differences

from perdure import checkpoint
from perdure.checkpoint import CheckpointError, read, write

DTYPES = [
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64,
]  # fmt: skip


def raw(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random bytes read as the type: NaN payloads and negative zeros included."""
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    found = torch.randint(256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    return (found % 2).bool().view(shape) if dtype == torch.bool else found.view(dtype).reshape(shape)


def round_trip(tree: dict, folder: Path) -> dict:
    write(folder / "tree", tree, "learner")
    return read(folder / "tree", "learner")


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"a": {"b": {"c": {}}}, "d": [], "e": (), "f": [[], [()]]},
        {"numbers": [0, -1, 1 << 80, 0.1, -0.0, math.inf, -math.inf, math.nan, 5e-324], "flags": [True, False, None]},
        {"text": ["", 'é 学 \x00 " \\ \n', "NaN"], "mixed": (1, [2.0, ("3",)], {"x": (None,)})},
        {"keys": {1: "int", "1": "string", None: 0, 2.5: 1, (3, "x"): 2, "$tensor": 3, "$tuple": 4, "$items": []}},
        {"$tensor": "a string, not a tensor", "": 1},
    ],
    ids=["empty", "nested", "numbers", "text", "keys", "words of the format"],
)
def test_plain_values_come_back_with_their_types(tree, tmp_path):
    assert differences(tree, round_trip(tree, tmp_path)) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (2, 3)], ids=str)
def test_tensors_of_every_type_and_shape_come_back_bit_for_bit(dtype, shape, tmp_path):
    tree = {"t": raw(dtype, *shape)}
    assert differences(tree, round_trip(tree, tmp_path)) == []


def test_tensors_in_any_memory_order_come_back(tmp_path):
    image = torch.arange(120.0).view(2, 3, 4, 5)
    tree = {
        "transposed": torch.arange(6).view(2, 3).T,
        "strided": torch.arange(20)[3:17:4],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "channels last": image.to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    back = round_trip(tree, tmp_path)
    for name, tensor in tree.items():
        assert torch.equal(tensor, back[name]), name
        assert not back[name].requires_grad


KEYS = st.one_of(st.text("ab/$'#1", max_size=3), st.integers(0, 2), st.none())
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.integers(0, 3).map(torch.arange)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(tree=st.dictionaries(KEYS, TREES, max_size=4))
def test_any_tree_comes_back(tree, tmp_path_factory):
    assert differences(tree, round_trip(tree, tmp_path_factory.getbasetemp())) == []


def test_paths_that_look_alike_do_not_share_a_tensor(tmp_path):
    tree = {
        "a/b": torch.tensor(1.0),
        "a": {"b": torch.tensor(2.0), 1: torch.tensor(3.0), "1": torch.tensor(4.0), "b'": torch.tensor(5.0)},
        "__metadata__": torch.tensor(6.0),
        "": {"": torch.tensor(7.0)},
    }
    assert differences(tree, round_trip(tree, tmp_path)) == []


def test_a_slice_does_not_drag_its_storage_into_the_file(tmp_path):
    storage = torch.zeros(1_000_000)
    tree = {"row": storage[500:503], "strided": storage[::100_000], "scalar": storage[7]}
    assert differences(tree, round_trip(tree, tmp_path)) == []
    assert (tmp_path / "tree").stat().st_size < 2000


def test_tied_tensors_are_written_once_and_tied_again(tmp_path):
    weight, other = torch.randn(1000), torch.randn(3)
    tree = {"encoder": weight, "decoder": {"weight": weight.detach()}, "list": [weight, other, other.clone()]}
    back = round_trip(tree, tmp_path)
    assert differences(tree, back) == []
    assert (tmp_path / "tree").stat().st_size < 1.5 * 4000
    back["encoder"][0] = 7.0
    assert back["decoder"]["weight"][0] == 7.0 == back["list"][0][0]
    assert back["list"][1].data_ptr() != back["list"][2].data_ptr()


def test_tensors_that_only_begin_together_are_not_tied(tmp_path):
    storage = torch.arange(6.0)
    tree = {"all": storage, "half": storage[:3], "square": storage.view(2, 3), "as int": storage.view(torch.int32)}
    assert differences(tree, round_trip(tree, tmp_path)) == []
    empty = round_trip({"a": torch.empty(0), "b": torch.empty(0, 3), "c": torch.empty(0, dtype=torch.long)}, tmp_path)
    assert empty["b"].shape == (0, 3)
    assert empty["c"].dtype == torch.long


# ---- refused ----


def small(path: Path) -> bytes:
    write(path, {"w": torch.arange(4.0), "n": [1, None], "deep": {1: torch.ones(2, dtype=torch.bfloat16)}}, "learner")
    return path.read_bytes()


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        read(tmp_path / "nowhere", "learner")
    with pytest.raises(CheckpointError, match="cannot read"):
        read(tmp_path, "learner")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(CheckpointError, match="0 bytes"):
        read(tmp_path / "empty", "learner")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "file"
    data = small(path)
    for length in {len(data) * part // 20 for part in range(20)} | {7, 8, 9, len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read(path, "learner")
    path.write_bytes(data + b"\x00")
    with pytest.raises(CheckpointError):
        read(path, "learner")
    path.write_bytes(data)
    assert read(path, "learner")["n"] == [1, None]


def test_every_single_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "file"
    data = small(path)
    assert 400 < len(data) < 800
    accepted = []
    with open(path, "r+b", buffering=0) as file:
        for bit in range(8 * len(data)):
            os.pwrite(file.fileno(), bytes([data[bit // 8] ^ 1 << bit % 8]), bit // 8)
            try:
                read(path, "learner")
                accepted.append(bit)
            except CheckpointError as error:
                assert str(path) in str(error)
            os.pwrite(file.fileno(), data[bit // 8 : bit // 8 + 1], bit // 8)
    assert path.read_bytes() == data
    assert accepted == []


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=["none", "foreign"])
def test_a_safetensors_file_that_we_did_not_write_is_refused(metadata, tmp_path):
    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "foreign", metadata)
    with pytest.raises(CheckpointError, match="Perdure did not write it"):
        read(tmp_path / "foreign", "learner")


def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "pickle.pt")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read(tmp_path / "pickle.pt", "learner")


def test_a_newer_format_and_another_kind_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    small(tmp_path / "new")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2, this version reads up to 1: upgrade"):
        read(tmp_path / "new", "learner")
    small(tmp_path / "old")
    with pytest.raises(CheckpointError, match="holds a learner, not a memory"):
        read(tmp_path / "old", "memory")


@pytest.mark.parametrize(
    ("value", "kind"),
    [(object(), "object"), (np.float32(1), "float32"), (np.int64(1), "int64"), (np.ones(2), "ndarray"), ({1}, "set"),
     (b"x", "bytes"), (1j, "complex"), (len, "builtin")],
)  # fmt: skip
def test_a_value_that_cannot_be_kept_is_refused_with_its_path(value, kind, tmp_path):
    with pytest.raises(TypeError, match=rf"memory/1/store is a {kind}"):
        write(tmp_path / "file", {"memory": [0, {"store": value}]}, "learner")
    with pytest.raises(TypeError, match=r"memory/.* is a"):
        write(tmp_path / "file", {"memory": {frozenset([1]): 2}}, "learner")
    assert list(tmp_path.iterdir()) == []


# ---- written whole or not at all ----


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"]
)
def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(call, failure, tmp_path, monkeypatch):
    before = small(tmp_path / "file")

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(failure)):
        write(tmp_path / "file", {"w": torch.zeros(100)}, "learner")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == before


def test_the_file_is_synced_then_renamed_then_its_folder_synced(tmp_path, monkeypatch):
    calls: list[tuple[str, int]] = []
    sync, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        found = os.fstat(handle)
        calls.append(("folder", found.st_ino) if stat.S_ISDIR(found.st_mode) else ("file", found.st_size))
        sync(handle)

    def replace(old: Path, new: Path) -> None:
        assert Path(old).parent == Path(new).parent
        calls.append(("rename", Path(old).stat().st_size))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    path = tmp_path / "made" / "on the way" / "file"
    size = len(small(path))
    assert calls == [("file", size), ("rename", size), ("folder", path.parent.stat().st_ino)]
    assert os.listdir(path.parent) == ["file"]


# ---- trees in memory ----


def test_a_clone_shares_nothing_and_equals_everything():
    tree = {"t": torch.ones(3), "list": [torch.zeros(2, dtype=torch.bfloat16), ("x", torch.ones(()))]}
    copy = checkpoint.clone(tree)
    assert differences(tree, copy) == []
    tree["t"] += 1
    tree["list"][1][1].zero_()
    assert copy["t"].sum() == 3
    assert copy["list"][1][1] == 1


def test_bytes_of_a_tree_count_tied_tensors_once():
    weight = torch.zeros(10, dtype=torch.float64)
    assert (
        checkpoint.tensor_bytes({"a": weight, "b": [weight.detach(), (torch.ones(3, dtype=torch.uint8),)], "c": 5})
        == 83
    )
    assert len(bits(weight)) == 80
