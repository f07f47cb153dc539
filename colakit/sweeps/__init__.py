"""Search for settings: the Optuna study, its trials in child processes, their results."""
