"""A model for programs without jaxkv: one format a file."""
