"""The light that objects are drawn in, synthetic or imported."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float

from e3d_jax import structs

# Direction toward the key light. Brightness runs from AMBIENT (facing away) to AMBIENT + KEY_STRENGTH = 1 (facing it).
KEY_LIGHT = np.array([0.4, 0.3, 0.85]) / np.linalg.norm([0.4, 0.3, 0.85])
KEY_STRENGTH = 0.45
AMBIENT = 0.55


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lights:
    """Lights fixed in the world.

    Attributes:
      ambient: color of light from everywhere.
      directions: unit vectors toward the lights.
      colors: their colors.
      occlusion: strength of the darkening in creases, [0, 1].
    """

    ambient: Float[structs.ArrayLike, "*b 3"]
    directions: Float[structs.ArrayLike, "*b l 3"]
    colors: Float[structs.ArrayLike, "*b l 3"]
    occlusion: Float[structs.ArrayLike, "*b"]


def brightness(normals: Float[np.ndarray, "*n 3"], lights: Lights | None = None) -> Float[np.ndarray, "*n #3"]:
    """Return the wrapped diffuse shading of unit normals (world frame): ``ambient + sum of light * (1 + n.l) / 2``.

    Args:
      normals: unit normals.
      lights: the key light, as gray, when not given; occlusion is left out.
    """
    if lights is None:
        return (AMBIENT + KEY_STRENGTH * (0.5 + 0.5 * normals @ KEY_LIGHT))[..., None]
    ambient, directions, colors = (np.asarray(x) for x in (lights.ambient, lights.directions, lights.colors))
    return ambient + (0.5 + 0.5 * normals @ directions.T) @ colors
