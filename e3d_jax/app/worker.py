"""Jobs done by a system: what runs in the process that has the models."""

import contextlib
import copy
import dataclasses
import functools
import pathlib
import warnings
import zipfile
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from e3d_jax import config as config_lib
from e3d_jax import distributed, events, images, outputs, structs, system
from e3d_jax.app import jobs, pictures, schema
from e3d_jax.mesh import export, extract, formats
from e3d_jax.reconstruction import config as reconstruction

STAGES = ("input", "anchors", "interpolation", "reconstruction", "files")
SHOWN = 8  # views of a preview


class Maker:
    """Makes meshes with a system; what it remembers is for estimates alone."""

    def __init__(self, model: system.System):
        self._model = model
        self._seconds: dict[str, float] = {}  # of each stage of the last job
        self._ran: set[Any] = set()  # stages, and what their programs depend on, that are compiled

    def __call__(
        self, folder: pathlib.Path, options: schema.Options, azimuths: Sequence[float | str]
    ) -> Generator[schema.Progress]:
        """Make a mesh and its files; see :data:`e3d_jax.app.process.Make`.

        Raises:
          Refused: the pictures or the options cannot be used.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            for progress in self._make(folder, options, azimuths):
                said = dict.fromkeys(str(each.message) for each in caught if each.category is UserWarning)
                yield progress.model_copy(update={"warnings": list(said)})

    def _make(
        self, folder: pathlib.Path, options: schema.Options, azimuths: Sequence[float | str]
    ) -> Generator[schema.Progress]:
        model = with_options(self._model, options)
        given = [pictures.read(folder / str(number), number, options.tolerance) for number in range(len(azimuths))]
        programs = (len(azimuths), options.steps, options.quality)
        run = model.stream(given, azimuths=azimuths, elevation=options.elevation, seed=options.seed)
        try:
            with contextlib.closing(run):
                for event in run:
                    if isinstance(event, events.Step):
                        fresh = (event.stage, programs) not in self._ran
                        yield self._progress(event, compiling=fresh and not event.done)
                    elif isinstance(event, events.Done):
                        self._ran.add((event.stage, programs))
                        self._seconds[event.stage] = event.seconds
                        _write_preview(folder / jobs.PREVIEW, event)
                    else:
                        yield self._progress(events.Step("files", 0, 1, 0.0))
                        write(folder / jobs.RESULT, event, options, model.config)
        except ValueError as error:
            raise pictures.Refused(str(error), 422) from error

    def _progress(self, step: events.Step, compiling: bool = False) -> schema.Progress:
        later = [self._seconds.get(stage) for stage in STAGES[STAGES.index(step.stage) + 1 : -1]]
        if step.done:
            here: float | None = step.seconds / step.done * (step.total - step.done)
        else:
            here = self._seconds.get(step.stage, 0.0 if step.stage == "files" else None)
        parts = [here, *later]
        known = None if None in parts else round(sum(part or 0.0 for part in parts), 1)
        return schema.Progress(
            state="running", stage=step.stage, compiling=compiling, done=step.done, total=step.total, remaining=known
        )


@functools.cache
def maker(weights: str) -> Maker:
    """Return the maker with the system of some weights, loaded once.

    Raises:
      OSError, ValueError: see :func:`e3d_jax.system.load`.
    """
    distributed.keep_programs()
    return Maker(system.load(weights))


def with_options(model: system.System, options: schema.Options) -> system.System:
    """Return a system with the settings that options ask for.

    Raises:
      Refused: a setting is out of range for these weights.
    """
    config, components = model.config, dict(model.config.components)
    chosen = config.system
    try:
        if options.quality != "weights":
            mesh = reconstruction.at_quality(chosen.reconstruction, options.quality)
            chosen = dataclasses.replace(chosen, reconstruction=mesh)
        for name in ("anchor", "interpolation"):
            if options.steps is not None and name in components:
                sampling = dataclasses.replace(components[name].sampling, num_steps=options.steps)
                components[name] = dataclasses.replace(components[name], sampling=sampling)
    except ValueError as error:
        raise pictures.Refused(str(error), 422) from error
    changed = copy.copy(model)
    changed.config = config_lib.SystemConfig(chosen, components)
    return changed


def _write_preview(folder: pathlib.Path, done: events.Done) -> None:
    """Write what a stage made as a picture: the cut-out, or some views over their normal maps."""
    folder.mkdir(exist_ok=True)
    if done.stage == "input":
        images.write_png(folder / "input.png", done.value[0].image)
    elif isinstance(done.value, structs.ViewSet):
        views = done.value
        chosen = np.linspace(0, len(views.rgba), SHOWN, endpoint=False).astype(int)
        maps = images.encode_normal(views.normals[:SHOWN], np.asarray(views.normals[:SHOWN].any(-1), np.float32))
        rows = [[np.asarray(images.over_white(tile)) for tile in row] for row in (views.rgba[chosen], maps)]
        images.write_png(folder / "views.png", np.concatenate([np.concatenate(row, 1) for row in rows]))


def write(
    folder: pathlib.Path, result: system.Result, options: schema.Options, config: config_lib.SystemConfig
) -> None:
    """Write the files of a result: those of ``e3d infer``, every format, and archives of what belongs together.

    Raises:
      Refused: they cannot be written.
    """
    others = tuple(name for name in formats.WRITERS if name != "usdz" or formats.can_write_usdz())
    chosen = formats.Formats(others=others, up=options.up, size=options.size)
    try:
        outputs.write_result(folder, result, seed=options.seed, config=config, mesh_files=chosen)
        normals = images.encode_normal(extract.vertex_normals(result.mesh), np.ones(len(result.mesh.vertices)))
        colors = np.asarray(normals[:, :3], np.float32)
        shaded = dataclasses.replace(result.mesh, colors=colors, texture=None)
        export.write_glb(folder / "mesh_normals.glb", shaded)
        _pack(folder / "mesh_obj.zip", [*folder.glob("mesh.obj"), *folder.glob("mesh.mtl"), *folder.glob("texture.*")])
        _pack(folder / "views.zip", [*(folder / "views").iterdir()])
    except OSError as error:
        raise pictures.Refused("the server cannot write the result; its disk may be full", 507) from error


def _pack(path: pathlib.Path, members: list[pathlib.Path]) -> None:
    """Write an archive of files, without their folders."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in sorted(members):
            archive.write(member, member.name)
