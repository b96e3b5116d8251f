"""What ``benchmarks/accuracy.py`` is made of."""
