"""A mesh from a folder of views, with its files and report."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Mapping

import jax
import numpy as np
import tqdm

from e3d_jax import cameras, images, reports, structs, views_io
from e3d_jax import settings as settings_lib
from e3d_jax.evaluation import metrics
from e3d_jax.mesh import formats, preview
from e3d_jax.reconstruction import config, fields, pipeline, placement
from e3d_jax.reconstruction import preview as field_preview

PREVIEW_SIZE = 128


class Monitor:
    """Callback of a fit: a progress bar with loss and PSNR and, on request, images of the fit.

    Attributes:
      losses: those of the last chunk, with their PSNR in dB.
    """

    def __init__(self, bar: tqdm.tqdm, folder: pathlib.Path, interval: float):
        self._bar, self._folder, self._interval, self._last = bar, folder, interval, time.perf_counter()
        self.losses: dict[str, float] = {}

    def __call__(self, done: int, losses: Mapping[str, float], field: fields.Field) -> None:
        """Update the bar, and write ``preview.png`` if it is time."""
        self.losses = {**losses, "psnr_db": metrics.psnr_of_error(losses["squared_error"])}
        self._bar.set_postfix(loss=f"{losses['loss']:.3f}", psnr=f"{self.losses['psnr_db']:.1f} dB")
        self._bar.update(done - self._bar.n)
        if self._interval and time.perf_counter() - self._last > self._interval:
            shown = field_preview.render_field(field, cameras.ring(PREVIEW_SIZE, 1))
            images.write_png(
                self._folder / "preview.png", np.concatenate([np.asarray(images.composite(x)) for x in shown], 1)
            )
            self._last = time.perf_counter()


def reconstruct_folder(
    views: str | os.PathLike,
    out: str | os.PathLike,
    settings: config.ReconstructionSettings,
    *,
    seed: int = 0,
    use_normals: bool = True,
    mesh_files: formats.Formats = formats.Formats(),
    preview_seconds: float = 0.0,
    progress: bool = True,
) -> structs.Mesh:
    """Reconstruct a mesh from a folder of views and write its files.

    The mesh is in the coordinates of the views, wherever their object is and however large.

    Args:
      views: folder of views, see :mod:`e3d_jax.views_io`.
      out: folder of ``mesh.glb``, ``turntable.gif`` and ``report.json``; created if necessary.
      settings: how to reconstruct.
      seed: seed of the fit.
      use_normals: whether to use the normal maps of the views.
      mesh_files: what the mesh is written as beside ``mesh.glb``, and how.
      preview_seconds: interval at which ``preview.png`` shows the fit; 0 writes none.
      progress: show a progress bar.

    Raises:
      OSError: a file cannot be read or written.
      ValueError: the views cannot be used, see :func:`views_io.read_views` and :func:`pipeline.reconstruct`.
    """
    posed, out = views_io.read_views(views, np.float64), pathlib.Path(out)
    votes = int(settings.fit.hull_votes * len(posed.rgba))
    placed = placement.find(posed, half_extent=settings.fit.half_extent, votes=votes)
    posed = (placed or placement.Placement(np.zeros(3), 1.0)).views(posed)
    if not use_normals:
        posed = dataclasses.replace(posed, normal_views=posed.normal_views[:0], normals=posed.normals[:0])
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with tqdm.tqdm(total=settings.fit.steps, desc="reconstruction", unit="step", disable=not progress) as bar:
        monitor = Monitor(bar, out, preview_seconds)
        mesh = pipeline.reconstruct(posed, settings, jax.random.key(seed), monitor)
    seconds, memory = time.perf_counter() - start, reports.peak_memory_gb()
    found = placed.mesh(mesh) if placed else mesh
    mesh_files.write(out, found)
    preview.write_turntable(out / "turntable.gif", mesh)
    report = reports.report(
        seed=seed,
        seconds={"reconstruction": round(seconds, 3)},
        peak_memory_gb={"reconstruction": memory},
        mesh=mesh,
        settings={"reconstruction": settings_lib.to_dict(settings)},
        views={"count": len(posed.rgba), "normal_maps": len(posed.normal_views)},
        placement={"center": placed.center.tolist(), "scale": placed.scale} if placed else None,
        final_losses=monitor.losses,
    )
    reports.write(out, report)
    return found
