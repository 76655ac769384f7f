"""Settings as data: one typed constant a file, no code."""
