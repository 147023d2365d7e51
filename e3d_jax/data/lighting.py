"""The light that most objects are drawn in, synthetic or imported."""

import numpy as np
from jaxtyping import Float

# Direction toward the key light. Brightness runs from AMBIENT (facing away) to AMBIENT + KEY_STRENGTH = 1 (facing it).
KEY_LIGHT = np.array([0.4, 0.3, 0.85]) / np.linalg.norm([0.4, 0.3, 0.85])
KEY_STRENGTH = 0.45
AMBIENT = 0.55


def brightness(normals: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
    """Return the wrapped diffuse shading of unit normals (world frame): ``ambient + strength * (1 + n.l) / 2``."""
    return AMBIENT + KEY_STRENGTH * (0.5 + 0.5 * normals @ KEY_LIGHT)
