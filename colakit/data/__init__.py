"""Corpora, tables, splits, tokenizer, batches, running text, minimal pairs, corruption."""
