"""Scores and budgets to slots, best first."""
