"""Device and precision, processes, subprocesses, seeds, signals, CPU count."""
