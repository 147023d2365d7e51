"""From posed views to a signed distance field, by differentiable volume rendering."""
