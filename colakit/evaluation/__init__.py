"""Metrics, bootstrap, model comparison, slices, minimal pairs, bits per byte, out-of-fold results."""
