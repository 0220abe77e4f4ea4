"""Inputs that nobody expects, tried by the thousand: `make fuzz`."""

import os

# Before numpy and torch are imported: the process that is forked must have a single thread.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
