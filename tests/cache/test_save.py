"""Saved caches: what is loaded answers as what was saved, and bad files are refused."""

import json
import os
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkv.cache.cache import Cache
from jaxkv.cache.load import load_cache
from jaxkv.cache.pages import PoolShape, pack
from jaxkv.cache.save import CHECKSUM, FORMAT, checksum
from jaxkv.generate import SMALLEST_FEED, generate
from jaxkv.kept import Kept
from jaxkv.method import method
from jaxkv.models.safetensors import TensorFile
from jaxkv.models.write_safetensors import write
from jaxkv.phases import feed_copy
from jaxkv.prompts import pad
from pallas_kernels.dispatch import compile_for
from tests.tiny import CONFIG, KEEP, tiny_model

QUESTIONS = [[5, 9], [7], [1, 2, 3], [60, 4]]
S, HEADROOM, NEW = 96, 32, 8
ROW = method("adakv", keep=KEEP)

jit_pack = jax.jit(pack, static_argnames="shape")


def packed(lengths) -> Cache:
    """A cache of the tiny model's size, over random entries."""
    rng, (B, K, H) = np.random.default_rng(0), (4, CONFIG.kv_heads, CONFIG.head_dim)
    lengths = np.broadcast_to(np.array(lengths, np.int32), (B, K))
    shape = PoolShape(2, 2, 60, int(lengths.max()), HEADROOM, page=8)
    position = np.broadcast_to(np.arange(S, dtype=np.int32), (B, S))

    def layer():
        k, v = rng.normal(size=(2, B, S, K, H)).astype(np.float32)
        order = np.argsort(rng.random((B, K, S)), axis=-1).astype(np.int32)
        next_position = S + jnp.arange(B)
        kept = Kept(*map(jnp.asarray, (k, v, position, order, lengths)))
        return jit_pack(kept, next_position, shape=shape)

    return Cache(tuple(layer() for _ in range(CONFIG.layers)))


@pytest.fixture(scope="module")
def even():
    """Heads of one length, four sequences, two groups."""
    return packed(30)


@pytest.fixture(scope="module")
def uneven():
    """Heads of different lengths, one of them empty."""
    return packed([[3, 1, 2, 2], [10, 30, 20, 20], [59, 1, 30, 30], [45, 15, 0, 60]])


def changed(f):
    """The tiny model with f applied to each parameter."""
    graph, state = nnx.split(tiny_model())
    return nnx.merge(graph, jax.tree.map(f, state))


@pytest.fixture(scope="module")
def saved(uneven, tmp_path_factory) -> bytes:
    file = tmp_path_factory.mktemp("saved") / "a.safetensors"
    uneven.save(file, tiny_model(), ROW)
    return file.read_bytes()


@pytest.fixture
def file(saved, tmp_path) -> Path:
    """A fresh copy of a saved cache, to be spoiled."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(saved)
    return path


def again(cache, folder: Path, headroom=HEADROOM):
    """Saved and loaded."""
    cache.save(folder / "again.safetensors", tiny_model())
    return load_cache(folder / "again.safetensors", tiny_model(), headroom=headroom)


def answers(cache):
    return generate(tiny_model(), QUESTIONS, cache=cache, max_new_tokens=NEW)


def feed(cache):
    """The questions' logits, and the cache after them."""
    asked = pad(QUESTIONS, CONFIG.vocabulary, CONFIG.max_position, SMALLEST_FEED)
    return feed_copy(tiny_model(), cache, asked.token_ids, asked.lengths)


def assert_holds_the_same(ours, theirs):
    np.testing.assert_array_equal(ours.lengths, theirs.lengths)
    np.testing.assert_array_equal(ours.next_position, theirs.next_position)
    for mine, its in zip(ours.positions, theirs.positions, strict=True):
        jax.tree.map(np.testing.assert_array_equal, mine, its)


def test_a_loaded_cache_answers_as_the_saved_one(even, tmp_path):
    loaded = again(even, tmp_path)
    assert_holds_the_same(loaded, even)
    tokens = answers(loaded)
    assert tokens == answers(even)
    assert len({tuple(row) for row in tokens}) == len(QUESTIONS)


def test_each_slot_lies_where_it_lay(even, tmp_path):
    loaded = again(even, tmp_path)
    for ours, theirs in zip(loaded.layers, even.layers, strict=True):
        live = np.asarray(theirs.position) >= 0
        for mine, its in zip(ours.entry, theirs.entry, strict=True):
            np.testing.assert_array_equal(mine[live], its[live])
        for name in ("position", "owner", "table", "length", "overflow"):
            mine, its = getattr(ours, name), getattr(theirs, name)
            assert mine.dtype == its.dtype
            np.testing.assert_array_equal(mine, its)


def test_a_cache_goes_from_one_platform_to_another(even, tmp_path):
    """Files hold keys and values apart, whatever tiles those are in."""
    with compile_for("tpu"):
        there = again(even, tmp_path)
    layouts = [jax.tree.structure(x.layers[0].entry) for x in (there, even)]
    assert layouts[0] != layouts[1]
    assert answers(there) == answers(even)
    back = again(there, tmp_path)
    for cache in (there, back):
        for ours, theirs in zip(cache.layers, even.layers, strict=True):
            live = np.asarray(theirs.position) >= 0
            np.testing.assert_array_equal(ours.entry.k[live], theirs.entry.k[live])
            np.testing.assert_array_equal(ours.entry.v[live], theirs.entry.v[live])


def test_headroom_is_made_anew(uneven, tmp_path):
    loaded = again(uneven, tmp_path, headroom=300)
    assert uneven.room < 300 <= loaded.room
    assert_holds_the_same(loaded, uneven)
    # Other pages are summed in another order.
    np.testing.assert_allclose(feed(loaded)[0], feed(uneven)[0], rtol=1e-5, atol=1e-5)


def test_only_slots_in_use_are_saved(uneven, tmp_path):
    """Neither headroom, nor the padding of a prompt beside a longer one."""
    short = jax.tree.map(lambda a: a[:2], uneven)
    loaded = again(short, tmp_path)
    assert_holds_the_same(loaded, short)
    assert HEADROOM <= loaded.room
    assert loaded.headroom_bytes < short.headroom_bytes
    slots = int(short.lengths.sum()) * (2 * CONFIG.head_dim * 4 + 4)
    size = (tmp_path / "again.safetensors").stat().st_size
    assert slots < size < slots + 4096  # the header, lengths


def test_a_cache_that_was_asked_goes_on_where_it_stood(even, tmp_path):
    _, cache = feed(even)
    loaded = again(cache, tmp_path)
    assert_holds_the_same(loaded, cache)
    np.testing.assert_array_equal(
        loaded.next_position, even.next_position + [len(q) for q in QUESTIONS]
    )
    assert loaded.room >= HEADROOM


def test_state_and_overflow_come_back(uneven, tmp_path):
    first, last = uneven.layers
    count = jnp.where(first.position >= 0, first.position * 3, 0)
    seen = jnp.arange(first.length.size, dtype=jnp.uint32).reshape(first.length.shape)
    first = replace(
        first,
        slot_state={"count": count.astype(jnp.uint16), "pair": first.entry.k[..., :2]},
        row_state={"seen": seen},
        overflow=seen == 3,
    )
    loaded = again(replace(uneven, pools=(first, last)), tmp_path)
    ours = loaded.layers[0]
    np.testing.assert_array_equal(ours.row_state["seen"], seen)
    np.testing.assert_array_equal(ours.overflow, first.overflow)
    expected = jnp.where(ours.position >= 0, ours.position * 3, 0)
    assert ours.slot_state["count"].dtype == jnp.uint16
    np.testing.assert_array_equal(ours.slot_state["count"], expected)
    np.testing.assert_array_equal(ours.slot_state["pair"], ours.entry.k[..., :2])
    assert loaded.overflow and not loaded.layers[1].slot_state


def test_bfloat16(even, tmp_path):
    def narrow(a):
        return a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a

    model, cache = changed(narrow), jax.tree.map(narrow, even)
    cache.save(tmp_path / "b.safetensors", model)
    loaded = load_cache(tmp_path / "b.safetensors", model, headroom=HEADROOM)
    assert_holds_the_same(loaded, cache)
    live = np.asarray(cache.layers[0].position) >= 0
    for mine, its in zip(loaded.layers[0].entry, cache.layers[0].entry, strict=True):
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_array_equal(mine[live], its[live])
    with pytest.raises(ValueError, match="of another model .* in the same dtype"):
        load_cache(tmp_path / "b.safetensors", tiny_model())


def test_every_shorter_file_is_refused(file, saved):
    for size in [*range(0, len(saved), len(saved) // 60), len(saved) - 1]:
        file.write_bytes(saved[:size])
        with pytest.raises(ValueError, match="too short|longer than|is cut short"):
            load_cache(file, tiny_model())


def test_every_altered_byte_is_seen(file, saved):
    header = 8 + int.from_bytes(saved[:8], "little")
    places = [*range(0, header, 29), *range(header, len(saved), len(saved) // 60)]
    for place in places:
        altered = bytearray(saved)
        altered[place] ^= 1
        file.write_bytes(altered)
        with pytest.raises(ValueError, match=f"^{file}: [^\n]*[.]$"):
            load_cache(file, tiny_model())


def test_an_altered_value_is_named_so(file, saved):
    file.write_bytes(saved[:-1] + bytes([saved[-1] ^ 1]))
    with pytest.raises(ValueError, match="altered after it was saved"):
        load_cache(file, tiny_model())


def test_another_model_is_refused(file):
    with pytest.raises(ValueError, match="of another model .*load the model that made"):
        load_cache(file, changed(lambda a: a * 2))


OTHER_SIZES = {"layers": 1, "kv_heads": 2, "head_dim": 8}


@pytest.mark.parametrize(("name", "size"), OTHER_SIZES.items())
def test_a_model_of_other_sizes_is_refused(file, uneven, name, size):
    other = changed(lambda a: a)
    other.config = replace(CONFIG, **{name: size})
    ours = getattr(CONFIG, name)
    with pytest.raises(
        ValueError, match=f"{name}={ours}, .* this one has {name}={size}"
    ):
        load_cache(file, other)
    with pytest.raises(ValueError, match="2 layers of 4 kv heads of size 16, other"):
        uneven.save(file.with_name("other.safetensors"), other)
    assert list(file.parent.iterdir()) == [file]


def test_the_method_is_noted(file):
    load_cache(file, tiny_model(), method=ROW)
    with pytest.raises(ValueError, match="saved as of Method.*keep=0.3.*, not Method"):
        load_cache(file, tiny_model(), method=method("adakv", keep=0.5))


def test_no_cache_file(tmp_path):
    write(tmp_path / "w.safetensors", {"w": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match="it is no cache that this version"):
        load_cache(tmp_path / "w.safetensors", tiny_model())
    with pytest.raises(ValueError, match="there is no such file"):
        load_cache(tmp_path / "absent.safetensors", tiny_model())


def test_headroom_of_nothing(file):
    with pytest.raises(ValueError, match="headroom=0; reserve one"):
        load_cache(file, tiny_model(), headroom=0)


def change_about(file: Path, tensors=(), **change) -> None:
    """Changes a file and its checksum with it; a tensor of None is taken out."""
    read = TensorFile(file)
    held = {name: read.read(name) for name in read.names} | dict(tensors)
    held = {name: tensor for name, tensor in held.items() if tensor is not None}
    about = json.dumps(json.loads(read.metadata["about"]) | change)
    metadata = {"format": FORMAT, "about": about}
    write(file, held, metadata | {CHECKSUM: checksum(metadata, held)})


MADE_UP = {
    "page of nothing": {"page": [0, 0]},
    "huge page": {"page": [2**40, 64]},
    "text as page": {"page": ["64", "64"]},
    "no pages": {"page": []},
    "missing": {"tensors": {"layers.1.k": None}},
    "short": {"tensors": {"layers.0.position": np.zeros(3, np.int32)}},
    "more heads": {"tensors": {"layers.0.length": np.zeros((4, 1, 1, 9), np.int32)}},
    "negative": {"tensors": {"layers.0.length": np.full((4, 2, 1, 2), -1, np.int32)}},
    "sequences": {"tensors": {"next_position": np.zeros(3, np.int32)}},
}


@pytest.mark.parametrize("change", MADE_UP.values(), ids=MADE_UP)
def test_a_made_up_file_is_refused(file, change):
    change_about(file, **change)
    with pytest.raises(ValueError, match="its tensors do not fit together"):
        load_cache(file, tiny_model())


def test_where_nothing_can_be_written(uneven, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    bad = ["file/a.safetensors", "folder.safetensors"]
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o555)
        bad += ["locked/a.safetensors"]
    before = sorted(tmp_path.rglob("*"))
    for name in bad:
        with pytest.raises(ValueError, match="cannot be written there .*[.]$"):
            uneven.save(tmp_path / name, tiny_model())
    assert sorted(tmp_path.rglob("*")) == before

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("jaxkv.models.write_safetensors.save_file", refuse)
    with pytest.raises(ValueError, match="cannot be written there .*Permission denied"):
        uneven.save(tmp_path / "a.safetensors", tiny_model())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_save_that_fails_leaves_the_old_file(file, saved, uneven, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxkv.models.write_safetensors.save_file", full)
    with pytest.raises(ValueError, match="No space left"):
        uneven.save(file, tiny_model())
    assert file.read_bytes() == saved
    assert list(file.parent.iterdir()) == [file]
