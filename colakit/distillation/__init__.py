"""Teachers, transfer set, sentence samplers, student, control."""
