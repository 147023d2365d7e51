"""From a condition to views: the anchor stage, then the interpolation stage."""
