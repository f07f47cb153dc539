"""Formats that other programs read and write: transformers' GPT-2 layout and PEFT's adapters."""
