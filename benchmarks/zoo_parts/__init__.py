"""What ``benchmarks/zoo.py`` is made of."""
