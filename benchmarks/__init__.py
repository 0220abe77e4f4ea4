"""Measured comparisons: `make bench` prints one table; docs/speed.md says how to read it."""
