"""An endless, seeded supply of objects as signed distance fields, drawn by sphere tracing on the accelerator.

``sample_batch`` makes normalized objects, ``render`` draws them from any cameras, ``ground_truth_mesh`` extracts the
surface, ``generate`` streams training images.
"""

from e3d_jax.data.synthetic.examples import Example, generate
from e3d_jax.data.synthetic.objects import (
    ObjectParams,
    albedo,
    ground_truth_mesh,
    normalize,
    occupancy,
    sdf,
    stack,
    take,
)
from e3d_jax.data.synthetic.sample import family_of, sample_batch, sample_object
from e3d_jax.data.synthetic.tracer import Images, render

__all__ = [
    "Example",
    "Images",
    "ObjectParams",
    "albedo",
    "family_of",
    "generate",
    "ground_truth_mesh",
    "normalize",
    "occupancy",
    "render",
    "sample_batch",
    "sample_object",
    "sdf",
    "stack",
    "take",
]
