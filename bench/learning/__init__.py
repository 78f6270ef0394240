"""Parts of `bench_learn.py`, and what `bench_drift.py` measures."""
