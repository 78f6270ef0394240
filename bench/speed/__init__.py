"""The parts of `bench/bench_distill.py`: what is trained, who trains it, how it is timed."""
