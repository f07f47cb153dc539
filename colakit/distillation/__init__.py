"""Teachers, transfer set, sentence samplers, student; its loss is in `training/objectives.py`."""
