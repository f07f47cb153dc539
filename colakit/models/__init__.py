"""Networks: GPT-2, LoRA on it, and the recurrent student."""
