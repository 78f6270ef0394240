"""What `bench_quality.py` measures, a module each: intents (CLINC150), inheritance (digits), labels (CIFAR-10)."""
