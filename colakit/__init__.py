"""colakit: LoRA-tune a GPT-2 for sentence classification, then distil it into a small RNN."""

__version__ = "0.1.0"
