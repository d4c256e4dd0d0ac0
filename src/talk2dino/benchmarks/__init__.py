"""Evaluation on the eight benchmarks; the only folder that imports mmcv and mmseg, when used."""
