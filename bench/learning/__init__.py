"""What `bench_drift.py` measures: streams of still and changed worlds, detectors, false alarms and delays."""
