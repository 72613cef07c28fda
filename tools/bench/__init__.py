"""Benchmarks: `python tools/bench NAME`."""
