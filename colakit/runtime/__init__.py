"""Device and precision, processes, seeds, signals, CPU count."""
