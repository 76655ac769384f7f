"""What is read in the text of compiled programs, of a CPU's and of a TPU's."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxkv.mesh import make_mesh
from jaxkv.plan import hlo

MESH = {"data": 2, "fsdp": 4, "tensor": 2}
TPU = """\
HloModule jit_step

%fused.1 (p.1: bf16[16,8]) -> bf16[128,8] {
  %p.1 = bf16[16,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[128,8]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=4,'axis_2'=2] {'axis_1'}, dimensions={0}
}

%all-reduce-scatter.3 (p.2: f32[16,8]) -> f32[2,8] {
  %p.2 = f32[16,8]{1,0:T(8,128)} parameter(0)
  ROOT %all-reduce.1 = f32[16,8]{1,0:T(8,128)} all-reduce(%p.2), channel_id=8, \
replica_groups=[8,2]<=[2,8]T(1,0), to_apply=%add
}

%turns (p.3: (s32[], f32[2])) -> pred[] {
  %p.3 = (s32[]{:T(128)}, f32[2]{0:T(128)}) parameter(0)
  %five.1 = s32[]{:T(128)} constant(5)
  %at.1 = s32[]{:T(128)} get-tuple-element(%p.3), index=0
  ROOT %less.1 = pred[]{:T(512)} compare(%at.1, %five.1), direction=LT
}

%body (p.4: (s32[], f32[2])) -> (s32[], f32[2]) {
  %p.4 = (s32[]{:T(128)}, f32[2]{0:T(128)}) parameter(0)
  %part.1 = f32[2,8]{1,0:T(8,128)} fusion(%p.4), kind=kCustom, \
calls=%all-reduce-scatter.3, backend_config={"estimated_cycles":"100"}
  ROOT %both.1 = (s32[]{:T(128)}, f32[2]{0:T(128)}) tuple(%p.4)
}

ENTRY %main (x: f32[501,4096], s: s32[]) -> f32[2] {
  %x = f32[501,4096]{1,0:T(8,128)} parameter(0), \
metadata={op_name="state[\\'params\\']"}
  %s = s32[]{:T(128)} parameter(1), metadata={op_name="number"}
  %one.1 = bf16[128,8]{1,0} fusion(%x), kind=kLoop, calls=%fused.1, \
backend_config={"estimated_cycles":"11"}
  %two.1 = bf16[128,8]{1,0} fusion(%x), kind=kLoop, calls=%fused.1
  %loop.1 = (s32[]{:T(128)}, f32[2]{0:T(128)}) while(%s), condition=%turns, body=%body
  ROOT %moved.1 = f32[2]{0:T(128)} collective-permute(%x), channel_id=9, \
source_target_pairs={{0,2},{2,4}}
}
"""


def test_a_tpus_loops_collectives_and_cycles():
    text = hlo.parse(TPU)
    found = {one.kind: one for one in hlo.collectives(text, MESH)}
    gathered, cut = found["all-gather"], found["reduce-scatter"]
    assert (gathered.axes, gathered.times) == ("fsdp", 1)
    assert gathered.sent == 128 * 8 * 2 * 3 / 4
    assert (cut.axes, cut.times) == ("data", 5)
    assert cut.sent == 5 * 16 * 8 * 4 / 2
    assert found["collective-permute"].axes == "fsdp"
    assert hlo.cycles(text) == 11 + 5 * 100


def test_arguments_are_padded_as_their_tiles_say():
    assert hlo.parameters(hlo.parse(TPU)) == [
        ("state['params']", 504 * 4096 * 4),
        ("number", 128 * 4),
    ]
    assert hlo.padded_bytes("bf16[3,5]{0,1:T(8,128)(2,1)}") == 8 * 128 * 2
    assert hlo.padded_bytes("(f32[3], s8[2,2]{1,0})") == 12 + 4


@pytest.mark.parametrize("axis, others", [("fsdp", 2), ("tensor", 4)])
def test_a_loop_on_cpu_devices(axis, others):
    """Five sums over an axis, compiled here."""
    mesh = make_mesh("fsdp=4,tensor=2")
    lies = NamedSharding(mesh, PartitionSpec(axis))

    def f(x):
        def body(total, _):
            return total + jax.lax.psum(x * total.sum(), axis), None

        return jax.lax.scan(body, jnp.ones((6, 8)), length=5)[0]

    with jax.set_mesh(mesh):
        one = jax.shard_map(
            f, in_specs=PartitionSpec(axis), out_specs=PartitionSpec(), check_vma=False
        )
        given = jax.ShapeDtypeStruct((6 * mesh.shape[axis], 8), jnp.float32)
        made = jax.jit(one, in_shardings=lies).lower(given).compile()
    (found,) = hlo.collectives(hlo.parse(made.as_text()), dict(mesh.shape))
    n = mesh.shape[axis]
    assert n * others == mesh.size
    assert (found.kind, found.axes, found.times) == ("all-reduce", axis, 5)
    assert found.sent == 5 * 6 * 8 * 4 * 2 * (n - 1) / n
