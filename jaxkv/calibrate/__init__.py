"""What is measured of a model once, and read by methods."""
