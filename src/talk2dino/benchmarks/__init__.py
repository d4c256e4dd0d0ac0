"""Evaluation on benchmarks and own data; the only folder that imports mmcv and mmseg."""
