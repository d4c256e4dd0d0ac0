"""Refinements of scores."""
