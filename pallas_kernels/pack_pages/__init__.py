"""pack_pages: chosen slots into pages, and the append of a step's entries."""

from pallas_kernels.pack_pages.op import append_entries, pack_pages

__all__ = ["append_entries", "pack_pages"]
