"""The files of the benchmarks: labels, conversion, checks."""
