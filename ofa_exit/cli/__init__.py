"""The commands of ofa-exit, one file per verb."""
