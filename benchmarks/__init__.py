"""What training with this package costs, measured beside textbook loops and the limits. ``python -m benchmarks``."""
