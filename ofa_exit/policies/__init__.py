"""When to exit: confidence measures, threshold schedules, exit policies and the exit trace."""
