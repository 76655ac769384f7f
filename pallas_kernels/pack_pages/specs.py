"""The shapes that pack_pages and append_entries are tested and compiled at."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """One call: S tokens to choose from, `pages` pages of P slots, T to append."""

    name: str
    B: int
    S: int
    J: int
    R: int
    H: int
    P: int
    pages: int
    T: int


SPECS = (
    Spec("one page", B=1, S=5, J=1, R=1, H=64, P=64, pages=1, T=1),
    Spec("ragged", B=2, S=150, J=1, R=4, H=64, P=64, pages=7, T=1),
    Spec("groups", B=2, S=130, J=2, R=2, H=128, P=64, pages=5, T=3),
    Spec("wide page", B=1, S=300, J=1, R=2, H=96, P=128, pages=6, T=2),
)
