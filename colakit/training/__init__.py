"""Training loop, trainers, objectives, optimizers, schedules, averages."""
