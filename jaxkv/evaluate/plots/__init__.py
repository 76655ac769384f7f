"""The pictures of a comparison, one kind a file; pictures.py draws them all."""
