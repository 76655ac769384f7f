"""The hot operations of a paged attention cache, one folder an operation.

Each folder holds the same files: `reference.py` (the definition), `xla.py` (a blocked
path for every platform), `specs.py` (the shapes that tests and benchmarks share), and
one file for each Pallas backend where it exists. Nothing here imports jaxkv.
"""
