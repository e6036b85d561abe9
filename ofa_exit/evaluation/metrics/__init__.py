"""Quality metrics as the data sets' own evaluations define them."""
