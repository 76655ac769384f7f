"""Calibrations are found where they were kept, for the model they were made of."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import jaxkv
from jaxkv.cache.save import CHECKSUM, checksum
from jaxkv.calibrate import kinds, store
from jaxkv.calibrate.store import calibration, load, remember, save
from jaxkv.models.safetensors import TensorFile
from jaxkv.models.write_safetensors import write
from tests.tiny import CONFIG, tiny_model

GATE = np.linspace(0, 1, CONFIG.layers * CONFIG.kv_heads, dtype=np.float32)
GATES = {"gate": GATE.reshape(CONFIG.layers, CONFIG.kv_heads)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of the test's own, and nothing in memory."""
    tiny_model()  # which has its own remembered when it is made
    monkeypatch.setenv("JAXKV_CALIBRATION", str(tmp_path / "kept"))
    monkeypatch.setattr(store, "_remembered", type(store._remembered)())
    return tmp_path / "kept"


@pytest.fixture
def made(monkeypatch):
    """A kind that can be made, and counts how often it is."""
    calls = []

    def make(model, tokenizer, progress):
        calls.append(model)
        return GATES

    kind = kinds.Kind({"gate": "LK"}, "jaxkv calibrate --method counted", make)
    monkeypatch.setattr(kinds, "KINDS", {**kinds.KINDS, "counted": kind})
    return calls


def other_model():
    graph, state = nnx.split(tiny_model())
    return nnx.merge(graph, jax.tree.map(lambda a: a * 2, state))


def assert_gates(found):
    assert set(found) == {"gate"}
    np.testing.assert_array_equal(found["gate"], GATES["gate"])


def test_what_is_made_is_kept(made, folder, monkeypatch):
    model = tiny_model()
    for _ in range(2):
        assert_gates(calibration(model, "counted"))
    (file,) = folder.iterdir()
    assert file.name == f"counted-{store.hash_of(model)}.safetensors"
    monkeypatch.setattr(store, "_remembered", type(store._remembered)())
    assert_gates(calibration(model, "counted"))
    assert made == [model]
    calibration(other_model(), "counted")
    assert len(made) == len(list(folder.iterdir())) == 2


def test_the_hash_is_computed_once_a_model(made, monkeypatch):
    hashed, plain = [], store.model_hash
    monkeypatch.setattr(store, "model_hash", lambda m: hashed.append(m) or plain(m))
    model = other_model()
    for kind in ("counted", "counted", "head_classes"):
        calibration(model, kind)
    assert hashed == [model]


def test_what_cannot_be_made_names_the_command():
    with pytest.raises(ValueError, match="no gates of this model .* jaxkv train duo"):
        calibration(tiny_model(), "gates")
    with pytest.raises(ValueError, match="tokenizer .* jaxkv calibrate --method qfil"):
        calibration(tiny_model(), "query_filters")
    with pytest.raises(ValueError, match="There is no calibration 'gate'"):
        calibration(tiny_model(), "gate")


def test_what_is_remembered_is_found_without_a_file(folder):
    model = other_model()
    remember(model, "gates", GATES)
    assert_gates(calibration(model, "gates"))
    assert not folder.exists()
    with pytest.raises(ValueError, match="no gates of this model"):
        calibration(tiny_model(), "gates")
    with pytest.raises(ValueError, match="gates: no gates of this model, for it has"):
        remember(model, "gates", {})


def test_models_that_are_gone_are_forgotten():
    model = other_model()
    remember(model, "gates", GATES)
    store.hash_of(model)
    before = len(store._remembered), len(store._hashes)
    del model
    assert (len(store._remembered), len(store._hashes)) == tuple(n - 1 for n in before)


def test_what_ships_is_found_and_not_written_to(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(store, "shipped_folder", lambda: tmp_path / "shipped")
    save(tmp_path / "shipped", tiny_model(), "gates", GATES)
    assert_gates(calibration(tiny_model(), "gates"))
    assert not folder.exists()


def test_what_ships_is_of_the_demo_model():
    """Retraining the demo takes calibrating it again."""
    model, _ = jaxkv.load("demo")
    for file in store.shipped_folder().glob("*.safetensors"):
        kind = file.name.partition("-")[0]
        assert file.name == store.file_name(model, kind)
        load(file, model, kind)


def test_the_users_folder(monkeypatch):
    assert store.user_folder().name == "kept"
    monkeypatch.delenv("JAXKV_CALIBRATION")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert store.user_folder() == Path("/x/jaxkv/calibration")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.user_folder() == Path.home() / ".cache/jaxkv/calibration"


def test_a_file_of_its_own(tmp_path):
    file = save(tmp_path / "a.safetensors", tiny_model(), "gates", GATES)
    assert file == tmp_path / "a.safetensors"
    assert_gates(load(file, tiny_model(), "gates"))
    assert TensorFile(file).metadata["jaxkv"] == jaxkv.__version__


def test_another_model_or_kind_is_refused(tmp_path):
    file = save(tmp_path / "a.safetensors", tiny_model(), "gates", GATES)
    with pytest.raises(ValueError, match="of another model .*jaxkv train duo"):
        load(file, other_model(), "gates")
    with pytest.raises(ValueError, match="it holds 'gates', not 'head_classes'"):
        load(file, tiny_model(), "head_classes")
    with pytest.raises(ValueError, match="there is no such file"):
        load(tmp_path / "absent.safetensors", tiny_model(), "gates")


def test_every_shorter_file_is_refused(tmp_path):
    file = save(tmp_path / "a.safetensors", tiny_model(), "gates", GATES)
    whole = file.read_bytes()
    for size in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="too short|longer than|is cut short"):
            load(file, tiny_model(), "gates")


def test_every_altered_byte_is_seen(tmp_path):
    file = save(tmp_path / "a.safetensors", tiny_model(), "gates", GATES)
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        altered = bytearray(whole)
        altered[place] ^= 1
        file.write_bytes(altered)
        with pytest.raises(ValueError, match=f"^{file}: [^\n]*[.]$"):
            load(file, tiny_model(), "gates")


def test_a_made_up_file_is_refused(tmp_path):
    file = save(tmp_path / "a.safetensors", tiny_model(), "gates", GATES)
    arrays = {"gate": GATES["gate"][:1]}
    metadata = TensorFile(file).metadata
    metadata[CHECKSUM] = checksum(metadata, arrays)
    write(file, arrays, metadata)
    with pytest.raises(ValueError, match="'gate' is float32 .1, 4. and must be"):
        load(file, tiny_model(), "gates")
    write(file, arrays, {"format": "pt"})
    with pytest.raises(ValueError, match="it is no calibration that this version"):
        load(file, tiny_model(), "gates")


def test_a_spoiled_file_in_the_folder_is_not_passed_over(made, folder):
    model = tiny_model()
    folder.mkdir()
    (folder / store.file_name(model, "counted")).write_bytes(b"")
    with pytest.raises(ValueError, match="too short for a safetensors header"):
        calibration(model, "counted")
    assert not made


def test_where_nothing_can_be_written(made, folder):
    folder.write_text("a file")
    with pytest.warns(UserWarning, match="cannot be written there .* made anew"):
        assert_gates(calibration(tiny_model(), "counted"))
    assert_gates(calibration(tiny_model(), "counted"))
    with pytest.raises(ValueError, match="cannot be written there"):
        save(folder, tiny_model(), "gates", GATES)
