"""Measured comparisons: `make bench` prints one table; docs/speed.md explains it."""
