"""Every test has eight CPU devices, strict ranks and dtypes, and checked shapes.

Compiling takes most of the time: programs are compiled quickly rather than well, and
the larger ones once for all processes of a run.
"""

import os
import shutil
import tempfile
from importlib.metadata import version

FLAGS = "--xla_force_host_platform_device_count=8"
if version("jax").startswith("0.10."):  # others do not know it, and XLA then aborts
    FLAGS += " --xla_cpu_use_fusion_emitters=false"  # the older emitters are quicker
os.environ.setdefault("XLA_FLAGS", FLAGS)

PROGRAMS = "JAX_COMPILATION_CACHE_DIR"
OWN_PROGRAMS = None  # a folder that this process made and takes away again
if PROGRAMS not in os.environ:  # workers inherit it
    OWN_PROGRAMS = os.environ[PROGRAMS] = tempfile.mkdtemp(prefix="jaxkv-programs-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
install_import_hook(["jaxkv", "pallas_kernels"], "beartype.beartype")

LONGEST = (  # files that take longest begin first, so that no worker ends alone
    "test_model_laws",
    "test_compare",
    "test_hosts",
    "test_faults",
    "test_kills",
    "test_further",
    "test_upkeep",
    "test_peer_defects",
    "test_loop",
    "test_notebooks",
    "test_gates",
    "test_laws",
    "test_mesh",
    "test_latent_rows",
    "test_convolutional_rows",
    "test_stablehlo",
    "test_eigen",
)


def pytest_collection_modifyitems(items):
    at = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: at.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def programs_of_a_file():
    """Thousands of programs take more memory maps than Linux gives, and XLA crashes."""
    yield
    jax.clear_caches()


def pytest_unconfigure():
    if OWN_PROGRAMS is not None:
        shutil.rmtree(OWN_PROGRAMS, ignore_errors=True)
