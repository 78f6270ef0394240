"""What `bench_cascade.py` measures, a module each."""
