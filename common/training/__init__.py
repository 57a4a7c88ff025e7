"""The training loop and what it is made of: method, trainer, teacher, losses, schedules, precision, runs, handlers."""
