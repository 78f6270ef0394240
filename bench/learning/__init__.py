"""What `bench_learn.py` and `bench_drift.py` measure: fleets that learn together, and streams of still and changed worlds."""
