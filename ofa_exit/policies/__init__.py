"""When to exit: confidence measures, threshold schedules and exit policies."""
