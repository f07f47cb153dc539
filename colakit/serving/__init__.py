"""Serving of classifiers over HTTP: many adapters on one base, students, whole models."""
