"""What is saved comes back, on any mesh; what is damaged or cut short does not."""

import os
import re
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxkv.mesh import make_mesh
from jaxkv.train import checksums
from jaxkv.train.checkpoint import Checkpoints

STATE = {
    "params": {"a.b": np.arange(64, dtype=np.float32).reshape(8, 8)},
    "optimizer": ({"a.b": np.ones((8, 8), np.float32)}, np.int32(7)),
}
SPEC = PartitionSpec("data", ("fsdp", "tensor"))


def laid(mesh_text, state=STATE):
    mesh = make_mesh(mesh_text)

    def lay(x):
        spec = SPEC if x.ndim else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(lay, state)


def filled(folder, steps=(1, 2), **kept):
    with Checkpoints(folder, **kept) as saved:
        for step in steps:
            state = laid("data=8", jax.tree.map(partial(np.add, step), STATE))
            saved.save(step, state, {"s": step})
    return folder


def kept_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def spoil(file, how):
    whole = file.read_bytes()
    if how == "flip":
        half = len(whole) // 2
        changed = whole[:half] + bytes([whole[half] ^ 16]) + whole[half + 1 :]
        file.write_bytes(changed)
    elif how == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    else:
        file.unlink()


def arrays_of(folder):
    """The file that holds the arrays' bytes."""
    files = [file for file in folder.rglob("d/*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8", "data=2,fsdp=2,tensor=2"])
def test_it_is_restored_onto_another_mesh(mesh, tmp_path):
    filled(tmp_path)
    empty = laid(mesh, jax.tree.map(np.zeros_like, STATE))
    told = []
    with Checkpoints(tmp_path) as saved:
        step, state = saved.restore(empty, told.append)
    assert step == 2 and told == [{"s": 2}]
    expected = jax.tree.map(lambda x: x + 2, STATE)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    same = jax.tree.map(lambda x, y: x.sharding == y.sharding, state, empty)
    assert all(jax.tree.leaves(same))


def test_a_save_is_of_the_state_as_it_was(tmp_path):
    """Steps that follow at once give their state's buffers away."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 + 1, s), donate_argnums=0)
    state = laid("fsdp=8", {"x": np.ones((512, 512), np.float32)})
    with Checkpoints(tmp_path) as saved:
        saved.save(1, state)
        for _ in range(5):
            state = step(state)
    with Checkpoints(tmp_path) as saved:
        _, state = saved.restore(state)
    np.testing.assert_array_equal(state["x"], np.ones((512, 512)))


def test_the_last_and_every_so_manieth_stay(tmp_path):
    filled(tmp_path, range(1, 11), keep_last=3, keep_every=4)
    assert kept_in(tmp_path) == [4, 8, 9, 10]


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(1, laid("data=8"), {"first": True})
        saved.save(1, laid("data=8"), {"first": False})
    with Checkpoints(tmp_path) as saved:
        saved.restore(laid("data=8"), lambda run: None if run["first"] else 1 / 0)


@pytest.mark.parametrize("left", ["unsealed", "tmp"])
def test_what_was_saved_in_part_is_cleared(left, tmp_path):
    filled(tmp_path)
    if left == "unsealed":
        (tmp_path / "2" / "sha256.0-of-1.json").unlink()
    else:
        shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as saved:
        assert saved.step == (1 if left == "unsealed" else 2)
        saved.save(3, laid("data=8"))
    assert kept_in(tmp_path)[-1] == 3
    assert not [name for name in os.listdir(tmp_path) if "tmp" in name]


@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
@pytest.mark.parametrize("which", ["arrays", "_METADATA", "_CHECKPOINT_METADATA"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    how, which, tmp_path, capsys
):
    filled(tmp_path)
    newest = tmp_path / "2"
    file = arrays_of(newest) if which == "arrays" else next(newest.rglob(which))
    spoil(file, how)
    with Checkpoints(tmp_path) as saved:
        step, state = saved.restore(laid("data=8"))
    assert step == 1
    expected = jax.tree.map(lambda x: x + 1, STATE)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file.relative_to(newest)) in line and "going on from step 1" in line
    # Nothing is lost: what is damaged is only put aside.
    assert (tmp_path / "damaged-2" / "sha256.0-of-1.json").is_file()


def test_where_all_are_damaged_nothing_is_touched(tmp_path):
    filled(tmp_path)
    for step in "12":
        spoil(arrays_of(tmp_path / step), "flip")
    with pytest.raises(
        ValueError, match=r"2 is damaged: .*put back a copy of that file"
    ):
        Checkpoints(tmp_path)
    assert kept_in(tmp_path) == [1, 2]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    filled(tmp_path)
    other = laid("data=8", STATE | {"params": {"a.b": np.zeros((8, 16), np.float32)}})
    message = "params.a.b is float32[8, 8] there and float32[8, 16] here"
    with (
        pytest.raises(ValueError, match=re.escape(message)),
        Checkpoints(tmp_path) as s,
    ):
        s.restore(other)
    more = laid("data=8", STATE | {"guard": np.zeros((8, 8), np.float32)})
    with pytest.raises(ValueError, match="guard is missing there"):
        with Checkpoints(tmp_path) as s:
            s.restore(more)


def test_each_process_seals_its_own_files(tmp_path):
    (tmp_path / "ocdbt.process_1" / "d").mkdir(parents=True)
    (tmp_path / "ocdbt.process_1" / "d" / "x").write_text("one")
    (tmp_path / "manifest").write_text("none")
    checksums.seal(tmp_path, 0, 2)
    assert not checksums.is_sealed(tmp_path)
    checksums.seal(tmp_path, 1, 2)
    assert checksums.is_sealed(tmp_path)
    assert checksums.damaged(tmp_path) is None
    (tmp_path / "manifest").write_text("nine")
    # Each of two processes reads one of the two files.
    found = [checksums.damaged(tmp_path, part, 2) for part in range(2)]
    assert found == ["manifest", None]
    (tmp_path / "sha256.1-of-2.json").write_text("{")
    assert checksums.damaged(tmp_path) == "sha256.1-of-2.json"


def test_dtypes_come_back(tmp_path):
    state = {"x": jnp.arange(8, dtype=jnp.bfloat16), "n": jnp.uint32(3)}
    with Checkpoints(tmp_path) as saved:
        saved.save(1, state)
    with Checkpoints(tmp_path) as saved:
        _, back = saved.restore(jax.tree.map(jnp.zeros_like, state))
    assert jax.tree.map(lambda x: x.dtype, back) == {"x": jnp.bfloat16, "n": jnp.uint32}
    np.testing.assert_array_equal(back["x"], state["x"])
