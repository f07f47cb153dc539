"""GPT-2: configuration, attention, model with language-model and classification heads."""
