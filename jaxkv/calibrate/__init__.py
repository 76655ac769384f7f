"""What is measured of a model once, and kept by its hash."""
