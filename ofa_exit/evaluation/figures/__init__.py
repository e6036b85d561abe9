"""Plots and tables of sweeps and layer curves."""
