"""Reconstruction: posed views to a signed distance field, by differentiable volume rendering, to a mesh."""
