"""Evaluation: the language, the tasks written in it, and what is measured on them."""
