"""Metrics, bootstrap intervals, model comparison, slices, minimal pairs, out-of-fold results."""
