"""Where a user's own files are kept between runs."""

import os
from pathlib import Path


def user_folder(variable: str, name: str) -> Path:
    """$VARIABLE, or jaxkv/NAME in $XDG_CACHE_HOME or ~/.cache; it need not exist."""
    given = os.environ.get(variable)
    if given:
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "jaxkv" / name
