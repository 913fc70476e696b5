"""Tests, in folders like those of the package."""

import os

# Before anything that reads it is imported, and for children too. Threads of tiny models wait for each
# other longer than they compute, above all where several processes of tests share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
