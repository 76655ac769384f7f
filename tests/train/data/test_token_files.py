"""Files of ids are mapped, cut at their boundaries, and checked."""

import os
import resource

import numpy as np
import pytest

from jaxkv.train.data import TokenFiles, token_files
from tests.train.data.reading import epoch, take

IDS = np.array([5, 6, 2, 7, 8, 9, 2, 10, 11])


def _file(tmp_path, ids, dtype="uint16", name="mine.bin", **options):
    np.asarray(ids).astype(dtype).tofile(tmp_path / name)
    return TokenFiles((str(tmp_path / name),), **options)


def _documents(source, length=8):
    return sorted(
        row["tokens"][row["segment"] == segment].tolist()
        for row in epoch(source, length=length)
        for segment in range(1, int(row["segment"].max()) + 1)
    )


@pytest.mark.parametrize("chunk", [2, 3, 100])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[5, 6, 2, 7, 8, 9, 2, 10], [11]]),
        ({"boundary": 2}, [[5, 6, 2], [7, 8, 9, 2], [10, 11]]),
        ({"boundary": 2, "begins": True}, [[2, 7, 8, 9], [2, 10, 11], [5, 6]]),
    ],
)
def test_a_boundary_ends_or_begins_a_document(
    tmp_path, monkeypatch, chunk, options, expected
):
    monkeypatch.setattr(token_files, "CHUNK", chunk)
    assert _documents(_file(tmp_path, IDS, **options)) == expected


def test_bin_has_the_dtype_that_is_given_and_npy_its_own(tmp_path):
    _file(tmp_path, IDS, "uint32")
    np.save(tmp_path / "other.npy", IDS + 20)
    paths = (str(tmp_path / "mine.bin"), str(tmp_path / "other.npy"))
    source = TokenFiles(paths, dtype="uint32", boundary=2)
    assert _documents(source, length=16)[-1] == (IDS + 20).tolist()


def test_no_tokenizer_is_needed(tmp_path):
    source = _file(tmp_path, IDS)
    (batch,) = take(source, tokenizer=None, vocabulary=12, length=9)
    assert batch["tokens"][0].tolist() == IDS.tolist()


@pytest.mark.parametrize("folder", [".", "deep"])
def test_several_files_are_one_epoch(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    for i in range(5):
        source = _file(
            tmp_path / folder, np.arange(i, i + 10) + 20 * i, name=f"{i}.bin"
        )
    source = TokenFiles((str(tmp_path / folder / "*.bin"),))
    found = np.sort(np.concatenate([row["tokens"] for row in epoch(source, length=10)]))
    assert found.tolist() == [i + 20 * i + j for i in range(5) for j in range(10)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"123"), "3 bytes are no whole number of uint16 ids"),
        (lambda p: p.write_bytes(b""), "there is no document in it"),
        (
            lambda p: np.array([3, 512], np.uint16).tofile(p),
            "token id 512 is outside the model's vocabulary of 512",
        ),
    ],
)
def test_faults_of_flat_files_are_told(tmp_path, make, message):
    path = tmp_path / "mine.bin"
    make(path)
    with pytest.raises(ValueError, match=f"mine.bin: {message}"):
        epoch(TokenFiles((str(path),)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3), np.uint16), r"it holds uint16 \[2, 3\], not one axis"),
        (np.zeros(3), r"it holds float64 \[3\], not one axis"),
        (np.array([3, -1]), "token id -1 is below 0"),
    ],
)
def test_faults_of_npy_files_are_told(tmp_path, array, message):
    path = tmp_path / "mine.npy"
    np.save(path, array)
    with pytest.raises(ValueError, match=f"mine.npy: {message}"):
        epoch(TokenFiles((str(path),)))


def test_a_cut_npy_file_is_told(tmp_path):
    path = tmp_path / "mine.npy"
    np.save(path, np.arange(1000, dtype=np.uint16))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="mine.npy: it is no whole .npy file"):
        epoch(TokenFiles((str(path),)))


def test_a_file_that_is_replaced_is_read_anew(tmp_path):
    first = _documents(_file(tmp_path, IDS))
    (tmp_path / "mine.bin").unlink()
    assert _documents(_file(tmp_path, IDS + 1)) != first


def test_there_may_be_more_files_than_a_process_may_open(tmp_path):
    for i in range(100):
        source = _file(tmp_path, [i, i], name=f"{i}.bin")
    source = TokenFiles((str(tmp_path / "*.bin"),))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 80, hard))
    try:
        rows = epoch(source, length=2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(int(row["tokens"][0]) for row in rows) == list(range(100))
