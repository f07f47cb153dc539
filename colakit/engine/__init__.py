"""Training, evaluation and what they leave on disk; knows models and data, not settings."""
