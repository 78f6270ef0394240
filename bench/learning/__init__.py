"""Parts of `bench_learn.py`."""
