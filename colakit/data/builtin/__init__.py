"""The built-in corpus: a seeded grammar of English that writes minimal pairs."""
