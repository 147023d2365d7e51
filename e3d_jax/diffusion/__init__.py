"""Noise schedules, parameterisations and samplers; knows nothing of networks."""
