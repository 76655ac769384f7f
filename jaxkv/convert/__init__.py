"""A model with grouped queries into one whose cache is smaller: one way a file."""
