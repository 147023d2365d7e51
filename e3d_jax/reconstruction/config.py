"""The settings of a reconstruction, and presets that trade speed for detail."""

import dataclasses
import functools
import math
from typing import Any

from e3d_jax.settings import Settings, setting

# Values of ``FitSettings.all_views``, for ablations.
VIEW_SCHEDULES: dict[str, tuple[float, ...]] = {
    "anchors_only": (),
    "all_views": (0.0,),
    "coarse_to_fine": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
}


_amount = functools.partial(setting, at_least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings(Settings):
    """How a signed distance field is fitted to views; lengths in object units, progress from 0 to 1.

    The fit goes from coarse to fine in three ways, each of which can be turned off: views (``all_views``), grid levels
    (``first_levels`` and ``levels_until``) and sharpness (``sharpness`` and ``anneal_until``).

    The release takes 5000 steps of up to 8192 rays, starting from a sphere. This fit starts from the visual hull, less
    the hollows that depth maps show, so a fifth of the steps is enough, and has less to learn: a few dense grids
    instead of ten hashed ones, layers of 32 instead of 64, directions in 9 harmonics instead of 16; Adam without weight
    decay. Color counts twice as much as in the release.
    """

    steps: int = setting("Optimizer steps; a multiple of steps_per_chunk.", 1000, at_least=1)
    steps_per_chunk: int = setting(
        "Steps per dispatch to the device; the occupancy cache is rebuilt before each chunk.", 50, at_least=1
    )
    rays: int = setting("Rays per step.", 512, at_least=1)
    samples: int = setting("Samples per ray.", 16, at_least=1)
    candidates: int = setting("Segments per ray that are looked up in the occupancy cache.", 64, at_least=1)
    random_points: int = setting("Points per step for the sparsity and smoothness losses.", 512, at_least=1)
    all_views: tuple[float, ...] = setting(
        "Progress values at which rays start to come from all views, stop, start again, and so on; otherwise they come "
        "from the anchors. The default is the release's intervals; () uses anchors only, (0.0,) always all views.",
        VIEW_SCHEDULES["coarse_to_fine"],
        at_least=0,
    )
    half_extent: float = _amount("The object lies in the cube from -half_extent to half_extent.", 0.55)
    hull_cells: int = setting(
        "Cells per side of the coarse distance grid, which is initialized to the visual hull.", 64, at_least=1
    )
    hull_votes: float = _amount("Fraction of the views that may wrongly call a point background.", 0.05)
    least_agreement: float = _amount(
        "Views whose silhouettes agree with the hull less than this, relative to the median view, are left out.", 0.8
    )
    depth_width: int = setting(
        "Width of the depth maps that find hollows of the hull, such as the insides of bowls, where views have normal "
        "maps; 0 leaves them filled. The qualities of `e3d fit` have 64; the systems 0, because generated normal maps "
        "contradict each other.",
        0,
        at_least=0,
    )
    cache_cells: int = setting("Cells per side of the occupancy cache.", 48, at_least=1)
    levels: tuple[int, ...] = setting(
        "Cells per side of the feature grids of the distance, coarse to fine.", (16, 32, 64), at_least=1
    )
    color_levels: tuple[int, ...] = setting("Cells per side of the feature grids of the color.", (16, 64), at_least=1)
    features: int = setting("Features per grid point.", 4, at_least=1)
    hidden: int = setting("Width of the layers.", 32, at_least=1)
    first_levels: int = setting("Number of feature grids that are active from the start.", 2, at_least=1)
    levels_until: float = _amount("Progress at which all feature grids are active.", 0.5)
    anneal_until: float = _amount("Progress at which the cosine annealing ends.", 0.5)
    sharpness: float = _amount(
        "Initial s of the NeuS density, in 1 / object unit. The qualities of `e3d fit` have 200, so that thin walls "
        "are opaque from the start.",
        80.0,
    )
    mask_contrast: float = _amount(
        "Factor that sharpens the coverage of the views around one half; 1 leaves it unchanged. Generated silhouettes "
        "are soft over several pixels, and a surface fitted to them looks like fur.",
        1.0,
    )
    favor_front: bool = setting(
        "Weight views by their azimuth (fit_schedules.view_weights), as the release does: generated views are best at "
        "the front. With the views of the mini system it changed the volume IoU by -0.003 (six test objects).",
        False,
    )
    learning_rates: tuple[float, float, float, float, float, float] = _amount(
        "Initial learning rates of the coarse distance, its feature grids, its layers, the color, the shifts of the "
        "views (in pixels) and the log sharpness.",
        (1e-3, 2e-2, 3e-3, 1e-2, 2e-2, 1e-2),
    )
    color_weight: float = _amount("Weight of the color loss if there are normal maps.", 1.0)
    bare_color_weight: float = _amount(
        "Weight of the color loss if no view has a normal map, so that colors shape hollows.", 15.0
    )
    mask_weight: float = _amount("Weight of the mask loss.", 1.0)
    normal_weight: float = _amount("Weight of the normal loss.", 1.0)
    eikonal_weight: float = _amount("Weight of the eikonal loss.", 0.2)
    sparsity_weight: float = _amount("Weight of the sparsity loss.", 0.5)
    smoothness_weight: float = _amount("Weight of the smoothness loss.", 0.05)
    shift_weight: float = _amount("Weight of the penalty on the shifts of the views.", 0.005)
    color_kept: float = _amount(
        "Fraction of the rays, lowest errors first, that count in the color loss. All rays count by default: the "
        "largest errors are outlines and small patterns, and without them ground-truth views lose 0.02 to 0.1 of "
        "volume IoU. The release keeps 0.8 (0.9 for masks, 0.8 for normals), which gains 0.01 if views contradict each "
        "other by three pixels, and loses 0.005 with the views of the mini system (15 test objects).",
        1.0,
    )
    mask_kept: float = _amount("Fraction of the rays that count in the mask loss, see color_kept.", 1.0)
    normal_kept: float = _amount("Fraction of the rays that count in the normal loss, see color_kept.", 1.0)
    smoothness_step: float = _amount("Standard deviation of the offset between compared normals.", 0.01)

    def check(self) -> None:
        """Refuse a number of steps that is not a whole number of chunks.

        Raises:
          ValueError: names the setting.
        """
        if self.steps % self.steps_per_chunk:
            raise ValueError(f"steps is {self.steps}; expected a multiple of steps_per_chunk, {self.steps_per_chunk}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionSettings(Settings):
    """How views become a textured mesh."""

    resolution: int = setting(
        "Marching-cubes cells along the longest side of the object.", 128, at_least=8, at_most=1024
    )
    max_faces: int = setting("The mesh is decimated to at most this many faces.", 20_000, at_least=100, at_most=10**7)
    texture_size: int = setting("Width and height of the texture in pixels.", 1024, at_least=16, at_most=16_384)
    smoothing: float = setting(
        "Standard deviation, in cells, of a Gaussian blur of the distances. It removes the roughness that "
        "contradictory (generated) views cause, and anything thinner.",
        0.0,
        at_least=0,
        at_most=10,
    )
    input_pixels: bool = setting(
        "Fit and paint the mesh with the pixels of the input pictures too, from the cameras that are found for them; "
        "False leaves it to the generated views.",
        True,
    )
    fit: FitSettings = setting("How the signed distance field is fitted.", FitSettings())


# For views of 128 to 512 pixels that agree with each other.
_agreeing = functools.partial(FitSettings, depth_width=64, sharpness=200.0)
QUALITIES = {
    "fast": ReconstructionSettings(max_faces=10_000, texture_size=512, fit=_agreeing(steps=500)),
    "standard": ReconstructionSettings(resolution=192, fit=_agreeing(steps=1200, rays=1024)),
    "best": ReconstructionSettings(
        resolution=320,
        max_faces=40_000,
        texture_size=2048,
        fit=_agreeing(steps=4000, rays=2048, levels=(16, 32, 64, 128), color_levels=(16, 64, 128)),
    ),
}


def at_quality(settings: ReconstructionSettings, quality: str) -> ReconstructionSettings:
    """Return settings with the steps and sizes of one of :data:`QUALITIES`.

    The rest is kept, because it depends on how well the views of a system agree.
    """
    chosen = QUALITIES[quality]
    fit = {name: getattr(chosen.fit, name) for name in ("steps", "rays", "levels", "color_levels")}
    sizes = {name: getattr(chosen, name) for name in ("resolution", "max_faces", "texture_size")}
    return dataclasses.replace(settings, fit=dataclasses.replace(settings.fit, **fit), **sizes)


def changed(settings: ReconstructionSettings, *, steps: int | None = None, **given: Any) -> ReconstructionSettings:
    """Return settings with some changed; None keeps the present value.

    Args:
      settings: the settings to start from.
      steps: optimizer steps of the fit; chunks are shortened to divide them.
      given: fields of :class:`ReconstructionSettings`.

    Raises:
      ValueError: a value is out of range.
    """
    if steps is not None:
        chunk = math.gcd(steps, settings.fit.steps_per_chunk)
        given["fit"] = dataclasses.replace(settings.fit, steps=steps, steps_per_chunk=chunk)
    return dataclasses.replace(settings, **{name: value for name, value in given.items() if value is not None})
