"""Metrics, reports, alignment and baselines for views and meshes."""
