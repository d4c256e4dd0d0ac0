"""Stored features: what is to be extracted, the extraction, and the feature file."""
