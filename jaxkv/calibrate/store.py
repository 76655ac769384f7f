"""Calibrations, kept by the hash of the model that they were made of.

A calibration is a few arrays with a layer axis, of a kind (kinds.py). It is looked for
in memory, then as KIND-HASH.safetensors in the user's folder, then in what ships with
the demo model; if it is nowhere and can be made, it is made, and kept in that folder:

    $JAXKV_CALIBRATION, or jaxkv/calibration in $XDG_CACHE_HOME or ~/.cache

A file's header says its kind, the model's hash, and a sha256 of everything else.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from safetensors import SafetensorError
from tokenizers import Tokenizer

import jaxkv
from jaxkv import folders
from jaxkv.cache.save import CHECKSUM, checksum
from jaxkv.calibrate.kinds import Arrays, Progress, kind_of
from jaxkv.models.decoder import Decoder
from jaxkv.models.hash import model_hash
from jaxkv.models.safetensors import TensorFile
from jaxkv.models.write_safetensors import write

FORMAT = "jaxkv calibration 1"

_hashes: WeakKeyDictionary[Decoder, str] = WeakKeyDictionary()
_remembered: WeakKeyDictionary[Decoder, dict[str, Arrays]] = WeakKeyDictionary()


def calibration(
    model: Decoder,
    kind: str,
    *,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
) -> Arrays:
    """The model's calibration of a kind: found, or made and kept.

    tokenizer: for kinds that are made from text. progress: called with (done, total,
    what) while one is made. The model is known by its object: its parameters must not
    change after the first call.

    Raises:
      ValueError: there is no such kind, or it is nowhere and cannot be made here (the
        sentence names the command that makes it), or what was found is spoiled.
    """
    about = kind_of(kind)
    held = _remembered.setdefault(model, {})
    if kind in held:
        return held[kind]
    name = file_name(model, kind)
    for path in (user_folder() / name, shipped_folder() / name):
        if path.is_file():
            held[kind] = load(path, model, kind)
            return held[kind]
    if about.make is None:
        raise ValueError(
            f"There are no {kind} of this model (hash {hash_of(model)[:12]}), and they "
            f"take training; run {about.command}."
        )
    arrays = about.make(model, tokenizer, progress)
    remember(model, kind, arrays)
    try:
        save(user_folder() / name, model, kind, arrays)
    except ValueError as error:
        warnings.warn(f"{error} Until then it is made anew each time.", stacklevel=2)
    return arrays


def remember(model: Decoder, kind: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Has `calibration` give these arrays for the model, as long as it is in memory.

    Raises:
      ValueError: there is no such kind, or the arrays are not those of it.
    """
    _check(f"{kind}", kind, arrays, model)
    _remembered.setdefault(model, {})[kind] = dict(arrays)


def save(
    file: str | os.PathLike,
    model: Decoder,
    kind: str,
    arrays: Mapping[str, np.ndarray],
) -> Path:
    """Writes a calibration: into a folder under its own name, or to a .safetensors.

    Returns the file. Raises ValueError, one sentence, when it cannot be written there.
    """
    path = Path(file)
    if path.suffix != ".safetensors":
        path = path / file_name(model, kind)
    _check(f"{path}", kind, arrays, model)
    metadata = {
        "format": FORMAT,
        "kind": kind,
        "model": hash_of(model),
        "jaxkv": jaxkv.__version__,
    }
    metadata[CHECKSUM] = checksum(metadata, arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, arrays, metadata)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path}: the calibration cannot be written there ({error}); give a "
            "folder that you may write to, by --out or in $JAXKV_CALIBRATION."
        ) from None
    return path


def load(file: str | os.PathLike, model: Decoder, kind: str) -> Arrays:
    """The arrays that `save` wrote for this model.

    Raises ValueError, one sentence, for a file that is cut short, altered, of another
    kind or of another model.
    """
    cure = f"remove it and make it again ({kind_of(kind).command})"
    read = TensorFile(file)
    arrays = {name: read.read(name) for name in read.names}
    found = read.metadata.get("format", "")
    if found != FORMAT:
        raise ValueError(
            f"{read.path}: it is no calibration that this version of jaxkv saved (its "
            f"format is {found!r}, not {FORMAT!r}); {cure}."
        )
    if read.metadata.get(CHECKSUM) != checksum(read.metadata, arrays):
        raise ValueError(
            f"{read.path}: the file was altered after it was saved (its {CHECKSUM} "
            f"differs); {cure}."
        )
    if read.metadata.get("kind") != kind:
        raise ValueError(
            f"{read.path}: it holds {read.metadata.get('kind')!r}, not {kind!r}; give "
            "the right file."
        )
    theirs, ours = read.metadata.get("model", ""), hash_of(model)
    if theirs != ours:
        raise ValueError(
            f"{read.path}: the calibration is of another model (hash {theirs[:12]}, "
            f"this one's is {ours[:12]}); make one of this model "
            f"({kind_of(kind).command})."
        )
    _check(f"{read.path}", kind, arrays, model)
    return arrays


def hash_of(model: Decoder) -> str:
    """The model's hash, computed once for each object: it reads every parameter."""
    if model not in _hashes:
        _hashes[model] = model_hash(model)
    return _hashes[model]


def file_name(model: Decoder, kind: str) -> str:
    """KIND-HASH.safetensors."""
    return f"{kind}-{hash_of(model)}.safetensors"


def user_folder() -> Path:
    """Where calibrations are kept; it need not exist yet."""
    return folders.user_folder("JAXKV_CALIBRATION", "calibration")


def shipped_folder() -> Path:
    """Those of the demo model, which the package brings; never written to."""
    return Path(jaxkv.__file__).parent / "demo" / "calibration"


def _check(
    where: str, kind: str, arrays: Mapping[str, np.ndarray], model: Decoder
) -> None:
    misfit = kind_of(kind).misfit(arrays, model.config)
    if misfit:
        raise ValueError(f"{where}: no {kind} of this model, for {misfit}.")
