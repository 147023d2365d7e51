"""Noise schedules, parameterizations and samplers, independent of networks."""
