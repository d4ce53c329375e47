"""Benchmarks: quality against known truth, other people's data, speed against the reference."""
