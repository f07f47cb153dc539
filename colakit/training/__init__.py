"""Training loop, trainers, losses (objectives), resuming, optimizers, schedules, averages."""
