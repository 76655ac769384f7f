"""Names the packages; everything else about the build is in pyproject.toml.

configs/ is installed as jaxkv.configs, which a pyproject.toml could say only by listing
every package of the project by hand.
"""

from setuptools import find_packages, setup

CONFIGS = ["configs", *(f"configs.{name}" for name in find_packages("configs"))]

setup(
    packages=find_packages(include=["jaxkv*", "pallas_kernels*"])
    + [f"jaxkv.{name}" for name in CONFIGS]
)
