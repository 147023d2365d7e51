"""Users' meshes, or their renders, as training records or folders of views.

Every mesh is brought to the ball of radius 0.5 and drawn with its textures and vertex colors, in a soft light from
above. Folders of views that were rendered elsewhere must be of the same cameras.
"""

from e3d_jax.data.assets.jobs import RenderSettings, find_assets, write_folders, write_records
from e3d_jax.data.assets.rendering import SUPERSAMPLING, Render, render

__all__ = ["SUPERSAMPLING", "Render", "RenderSettings", "find_assets", "render", "write_folders", "write_records"]
