"""What `bench_search.py` measures: random budgets, int8, latencies."""
