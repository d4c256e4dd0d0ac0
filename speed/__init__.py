"""Ratios of the shipped code against paper-literal versions; run `python speed/run.py`."""
