"""File formats: run folder, checkpoints, model file, GPT-2 layout, PEFT adapters, hub."""
