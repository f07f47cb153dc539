"""Sentences: corpora, tokens, caches and batches."""
