"""The safetensors reader: what it reads, and that bad files are refused before use."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxkv.models.safetensors import (
    DTYPES,
    INDEX,
    TensorFile,
    TensorFolder,
)
from jaxkv.models.write_safetensors import write, write_folder

F32_PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_reads_what_was_written(tmp_path, dtype):
    tensors = {
        "whole": np.arange(24).reshape(4, 6).astype(dtype),
        "scalar": np.ones((), dtype),
        "empty": np.zeros((0, 3), dtype),
    }
    write(tmp_path / "a.safetensors", tensors)
    file = TensorFile(tmp_path / "a.safetensors")
    assert set(file.names) == set(tensors)
    for name, tensor in tensors.items():
        assert file.shape(name) == tensor.shape
        assert file.dtype(name) == tensor.dtype
        assert file.read(name).tobytes() == tensor.tobytes()


def test_reads_slices_of_a_transposed_tensor(tmp_path):
    tensor = np.arange(24, dtype=np.float32).reshape(4, 6).astype(ml_dtypes.bfloat16)
    write(tmp_path / "a.safetensors", {"w": tensor.T})
    file = TensorFile(tmp_path / "a.safetensors")
    for index in (slice(1, 3), (..., slice(0, 4, 2)), (2, slice(None)), 5):
        np.testing.assert_array_equal(file.read("w", index), tensor.T[index])


def test_reads_its_metadata(tmp_path):
    path, tensors = tmp_path / "a.safetensors", {"w": np.zeros(2, np.float32)}
    write(path, tensors)
    assert TensorFile(path).metadata == {"format": "pt"}
    write(path, tensors, {"about": "[1]"})
    assert TensorFile(path).metadata == {"about": "[1]"}
    assert TensorFile(raw(path, {})).metadata == {}


def test_a_folder_is_one_file_or_shards_and_their_index(tmp_path):
    """One file of a tensor's own where it is larger than a shard may be."""
    tensors = {
        f"w{i}": np.full(size, i, np.float32) for i, size in enumerate((3, 9, 2))
    }
    for name, most in (("one", 10**6), ("several", 24)):
        (tmp_path / name).mkdir()
        write_folder(tmp_path / name, iter(tensors.items()), most)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.safetensors"]
    index = json.loads((tmp_path / "several" / INDEX).read_text())
    assert index["metadata"] == {"total_size": 56}
    assert len(set(index["weight_map"].values())) == 3
    files = {path.name for path in (tmp_path / "several").iterdir()}
    assert files == {INDEX, *index["weight_map"].values()}
    for name in ("one", "several"):
        folder = TensorFolder(tmp_path / name)
        for tensor in tensors:
            np.testing.assert_array_equal(folder.read(tensor), tensors[tensor])


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, {"w": np.ones(2, np.float32)})
    with pytest.raises(Exception, match="complex|dtype"):
        write(path, {"w": np.ones(2, np.dtype("O"))})
    assert TensorFile(path).read("w").tolist() == [1.0, 1.0]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_no_such_file(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        TensorFile(tmp_path / "absent.safetensors")


def test_too_short_for_a_header(tmp_path):
    path = tmp_path / "a.safetensors"
    for size in (0, 7):
        path.write_bytes(b"\0" * size)
        with pytest.raises(ValueError, match="too short"):
            TensorFile(path)


@pytest.mark.parametrize("claim", [3, 2**63, 2**64 - 1])
def test_header_longer_than_the_file(tmp_path, claim):
    path = tmp_path / "a.safetensors"
    path.write_bytes(claim.to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="longer than the file"):
        TensorFile(path)


def test_truncated(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, {"w": np.ones((8, 8), np.float32)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="tensor 'w' ends at byte 256, out of range"):
        TensorFile(path)


TWICE = b'{"w": %s, "w": %s}' % ((json.dumps(F32_PAIR).encode(),) * 2)
BAD_HEADERS = {
    "empty": (b"", "is not JSON"),
    "not JSON": (b"{w: 1}", "is not JSON"),
    "not text": (b"\xff\xfe\x00", "is not JSON"),
    "too deep": (b'{"w":' * 100_000, "is not JSON"),
    "a list": ([1, 2], "is not a JSON object"),
    "metadata a list": ({"__metadata__": []}, "metadata is not all text"),
    "metadata a number": ({"__metadata__": {"a": 1}}, "metadata is not all text"),
    "a name twice": (TWICE, "names 'w' twice"),
    "a field twice": (b'{"w": {"dtype": "F32", "dtype": "I8"}}', "'dtype' twice"),
    "no object": ({"w": 3}, "described by no JSON object"),
    "unknown dtype": ({"w": F32_PAIR | {"dtype": "F13"}}, "unknown dtype 'F13'"),
    "no dtype": ({"w": F32_PAIR | {"dtype": ["F32"]}}, "unknown dtype"),
    "negative size": ({"w": F32_PAIR | {"shape": [-2]}}, "impossible shape"),
    "true as size": ({"w": F32_PAIR | {"shape": [True]}}, "impossible shape"),
    "shape a number": ({"w": F32_PAIR | {"shape": 2}}, "impossible shape"),
    "three offsets": ({"w": F32_PAIR | {"data_offsets": [0, 8, 8]}}, "offsets"),
    "backward": ({"w": F32_PAIR | {"data_offsets": [8, 0]}}, "impossible offsets"),
    "negative": ({"w": F32_PAIR | {"data_offsets": [-8, 0]}}, "impossible offsets"),
    "fraction": ({"w": F32_PAIR | {"data_offsets": [0, 8.0]}}, "impossible offsets"),
    "size differs": ({"w": F32_PAIR | {"shape": [3]}}, "has 8 bytes .* needs 12"),
    "huge shape": ({"w": F32_PAIR | {"shape": [2**60, 2**60]}}, "needs"),
    "out of range": ({"w": F32_PAIR | {"data_offsets": [16, 24]}}, "out of range"),
    "overlap": (
        {"a": F32_PAIR, "w": F32_PAIR | {"data_offsets": [4, 12]}},
        "tensor 'w' overlaps",
    ),
    "same bytes": ({"a": F32_PAIR, "w": F32_PAIR}, "tensor 'w' overlaps"),
    "gap before": ({"w": F32_PAIR | {"data_offsets": [4, 12]}}, "gap of 4 bytes"),
    "gap after": ({"w": F32_PAIR}, "8 bytes after the last tensor"),
}


@pytest.mark.parametrize(("header", "message"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_bad_header(tmp_path, header, message):
    path = raw(tmp_path / "a.safetensors", header, bytes(16))
    with pytest.raises(ValueError, match=message) as error:
        TensorFile(path)
    assert str(path) in str(error.value)


def test_missing_tensor(tmp_path):
    path = raw(tmp_path / "a.safetensors", {"w": F32_PAIR}, bytes(8))
    with pytest.raises(ValueError, match="has no tensor 'v'"):
        TensorFile(path).read("v")


def shards(folder: Path, places: object) -> Path:
    write(folder / "1.safetensors", {"a": np.zeros(2, np.float32)})
    write(folder / "2.safetensors", {"b": np.ones(3, np.float32)})
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    return folder


def test_shards(tmp_path):
    folder = shards(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    tensors = TensorFolder(folder)
    assert tensors.names == ("a", "b")
    assert tensors.read("b", slice(1, None)).tolist() == [1.0, 1.0]
    assert tensors.file("b").path == folder / "2.safetensors"
    with pytest.raises(ValueError, match="no file of it holds the tensor 'c'"):
        tensors.shape("c")


BAD_INDEXES = {
    "no map": (None, "no weight_map"),
    "empty map": ({}, "no weight_map"),
    "upward": ({"a": "../1.safetensors"}, "not a plain"),
    "absolute": ({"a": "/tmp/1.safetensors"}, "not a plain"),
    "windows": ({"a": "..\\1.safetensors"}, "not a plain"),
    "drive": ({"a": "C:1.safetensors"}, "not a plain"),
    "a pickle": ({"a": "pytorch_model.bin"}, "not a plain"),
    "no text": ({"a": 1}, "not a plain"),
    "absent shard": ({"a": "3.safetensors"}, "there is no such file"),
    "wrong shard": ({"a": "2.safetensors"}, "2.safetensors: it has no tensor 'a'"),
}


@pytest.mark.parametrize(("places", "message"), BAD_INDEXES.values(), ids=BAD_INDEXES)
def test_bad_index(tmp_path, places, message):
    with pytest.raises(ValueError, match=message):
        TensorFolder(shards(tmp_path, places))


def test_folder_without_weights(tmp_path):
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        TensorFolder(tmp_path)
