"""Classifier object and its loading, batched logits, predictors, text generation."""
