"""Torch modules only: GPT, RNN, LoRA."""
