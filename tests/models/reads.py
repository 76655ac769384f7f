"""How many bytes of a model's files a process reads, in one process or in two.

python -m tests.models.reads FOLDER PORT I    process I of two, four devices each
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from jaxkv.models.safetensors import TensorFile


def count_reads(patch: Any) -> list[int]:
    """A list that gets the bytes of every read; `patch` is pytest's monkeypatch."""
    counted: list[int] = []
    read = TensorFile.read

    def counting(self, *asked):
        found = read(self, *asked)
        counted.append(found.nbytes)
        return found

    patch.setattr(TensorFile, "read", counting)
    return counted


def both(folder: Path) -> list[dict[str, Any]]:
    """What the two processes say that load the model together."""
    with socket.socket() as held:
        held.bind(("localhost", 0))
        port = held.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=4"
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.models.reads", folder, str(port), str(i)],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in running]
    return [json.loads(one.splitlines()[-1]) for one in said]


def main(folder: str, port: str, number: str) -> None:
    """Loads it on one process's devices, then over both, and compares the parts."""
    import jax
    import numpy as np
    import pytest

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    from jaxkv.layerwise import mesh_of
    from jaxkv.mesh import make_mesh
    from jaxkv.models.folder import load
    from jaxkv.models.hash import model_hash
    from jaxkv.params import take_apart

    model = load(folder)[0]
    alone, _ = take_apart(model)
    with pytest.MonkeyPatch.context() as patch:
        counted = count_reads(patch)
        # Devices of one process follow each other: tensor is between the processes.
        order = np.array(jax.devices()).reshape(2, 2, 2).transpose(1, 2, 0)
        mesh = make_mesh("data=2,fsdp=2,tensor=2", "auto", list(order.flat))
        spread, _ = load(folder, mesh=mesh)
    with pytest.raises(ValueError, match="devices of several processes, and caches"):
        mesh_of(spread)
    over, _ = take_apart(spread)
    same = model_hash(spread) == model_hash(model) and all(
        np.array_equal(shard.data, np.asarray(alone[path])[shard.index])
        for path, x in over.items()
        for shard in x.addressable_shards
    )
    print(json.dumps({"bytes": sum(counted), "same": same}))


if __name__ == "__main__":
    main(*sys.argv[1:])
