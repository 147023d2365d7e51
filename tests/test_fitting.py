"""One tiny fit from the command line: its mesh, its files, its report; and the command's options and errors."""

import dataclasses
import io
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from PIL import Image

from e3d_jax import cameras, cli, fitting, settings, views_io
from e3d_jax.mesh import export, extract, preview
from e3d_jax.reconstruction import config, fit, pipeline
from e3d_jax.reconstruction import preview as field_preview
from tests import sphere

MOVED = 2  # a view whose image is a pixel too far to the right
SETTINGS = config.ReconstructionSettings(resolution=24, max_faces=600, texture_size=32, fit=sphere.TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Views of a red sphere, one of them out of place."""
    path, views = tmp_path_factory.mktemp("views"), sphere.views()
    for images in (views.rgba, views.normals):
        images[MOVED] = np.roll(images[MOVED], 1, 1)
    views_io.write_views(path, views)
    return path


def make_fast(patch):
    """Make the command fast."""
    patch.setattr(config, "QUALITIES", {"standard": SETTINGS})
    patch.setattr(preview, "TURNTABLE_FRAMES", 2)
    patch.setattr(fitting, "PREVIEW_SIZE", 16)


@pytest.fixture
def tiny(monkeypatch):
    make_fast(monkeypatch)


@pytest.fixture(scope="module")
def result(folder, tmp_path_factory):
    """The output folder, mesh, reported chunks, last field and progress bar of one fit."""
    out, chunks, last, progress = tmp_path_factory.mktemp("out"), [], [], io.StringIO()
    reconstruct = pipeline.reconstruct

    def recorded(views, chosen, key, on_chunk):
        def record(done, losses, field):
            chunks.append((done, losses))
            last[:] = [field]
            on_chunk(done, losses, field)

        return reconstruct(views, chosen, key, record)

    with pytest.MonkeyPatch.context() as patch:
        make_fast(patch)
        patch.setattr(pipeline, "reconstruct", recorded)
        patch.setattr(sys, "stderr", progress)
        cli.main(["fit", f"--views={folder}", f"--out={out}", "--formats=obj", "--preview=0.0001", "--faces=500"])
    mesh = export.read_mesh(out / "mesh.glb")
    return types.SimpleNamespace(out=out, mesh=mesh, chunks=chunks, field=last[0], progress=progress.getvalue())


@pytest.mark.slow
def test_the_mesh_has_the_volume_of_the_sphere(result):
    points = np.random.default_rng(0).uniform(-0.4, 0.4, (4000, 3))
    gt = np.linalg.norm(points, axis=1) < sphere.RADIUS
    pred = trimesh.Trimesh(result.mesh.vertices, result.mesh.faces, process=False).contains(points)
    assert (gt & pred).sum() / (gt | pred).sum() > 0.9


@pytest.mark.slow
def test_the_texture_has_the_color_of_the_sphere(result):
    np.testing.assert_allclose(np.median(result.mesh.texture.image, (0, 1)), sphere.COLOR, atol=0.05)


@pytest.mark.slow
def test_the_field_has_the_color_of_the_sphere(result):
    _, color_fn = pipeline.surface_functions(result.field)
    colors = extract.in_chunks(color_fn, np.float32(sphere.RADIUS * np.eye(2, 3)))
    np.testing.assert_allclose(colors, [sphere.COLOR] * 2, atol=0.1)


@pytest.mark.slow
def test_every_chunk_is_reported(result):
    assert [done for done, _ in result.chunks] == [30, 60]
    assert result.chunks[1][1]["color"] < result.chunks[0][1]["color"]


@pytest.mark.slow
def test_images_that_are_out_of_place_are_found(result):
    shifts = np.asarray(result.field.view_shifts)
    assert shifts[MOVED, 0] < -0.3 and np.abs(np.delete(shifts, MOVED, 0)).max() < 0.3


@pytest.mark.slow
def test_the_mesh_is_textured_and_within_its_budget(result):
    assert len(result.mesh.faces) <= 500 and result.mesh.texture.image.shape == (32, 32, 3)


@pytest.mark.slow
def test_obj_and_glb_are_the_same_mesh(result):
    other = export.read_mesh(result.out / "mesh.obj")
    np.testing.assert_allclose(other.vertices.max(0), result.mesh.vertices.max(0), atol=1e-5)


@pytest.mark.slow
def test_images_of_the_result_and_of_the_fit_are_written(result):
    assert Image.open(result.out / "turntable.gif").n_frames == 2
    assert Image.open(result.out / "preview.png").size == (32, 16)


@pytest.mark.slow
def test_the_report_says_what_made_the_mesh_and_what_it_took(result):
    report = json.loads((result.out / "report.json").read_text())
    stored = settings.parse(config.ReconstructionSettings, report["settings"]["reconstruction"])
    assert stored == dataclasses.replace(SETTINGS, max_faces=500)
    assert report["views"] == {"count": 8, "normal_maps": 8} and report["final_losses"]["psnr_db"] > 5
    assert report["mesh"]["faces"] == len(result.mesh.faces)
    assert report["seconds"]["reconstruction"] > 0 and report["peak_memory_gb"]["reconstruction"] > 0


@pytest.mark.slow
def test_the_rendered_field_is_the_sphere(result):
    sharp = dataclasses.replace(result.field, log_sharpness=jnp.float32(np.log(1000.0)))
    rgba, normals = field_preview.render_field(sharp, cameras.ring(33)[:1])
    assert rgba.shape == normals.shape == (33, 33, 4)
    assert rgba[16, 16, 3] > 0.9 and rgba[0, 0, 3] < 0.01
    np.testing.assert_allclose(normals[16, 16, :3], [1, 0.5, 0.5], atol=0.15)


@pytest.mark.slow
def test_views_without_normal_maps_fit():
    views = sphere.views()
    bare = dataclasses.replace(views, normal_views=np.zeros(0, int), normals=np.zeros((0, 32, 32, 3), np.float32))
    fitted = fit.fit(bare, sphere.TINY, jax.random.key(0))
    assert np.isfinite(fitted.field.base).all()


class Stop(Exception):
    """Ends a run of the command before its work."""


@pytest.fixture
def call(tiny, monkeypatch):
    """Return a function that calls the command and returns what the reconstruction gets."""
    got = []

    def stop(*arguments):
        got.extend(arguments)
        raise Stop

    monkeypatch.setattr(pipeline, "reconstruct", stop)

    def run(*arguments):
        with pytest.raises(Stop):
            cli.main(["fit", *map(str, arguments)])
        return got

    return run


def test_options_change_the_quality(call, folder, tmp_path):
    options = ("--steps=40", "--resolution=10", "--faces=123", "--texture_size=16", "--smoothing=0.5")
    _, chosen, *_ = call(f"--views={folder}", f"--out={tmp_path}", *options)
    fit_settings = dataclasses.replace(sphere.TINY, steps=40, steps_per_chunk=10)
    assert chosen == config.ReconstructionSettings(
        resolution=10, max_faces=123, texture_size=16, smoothing=0.5, fit=fit_settings
    )


def test_normal_maps_can_be_ignored(call, folder, tmp_path):
    views, *_ = call(f"--views={folder}", f"--out={tmp_path}", "--nonormals")
    assert len(views.normals) == len(views.normal_views) == 0


def test_a_folder_without_views_is_refused_in_one_sentence(tiny, tmp_path):
    with pytest.raises(SystemExit) as error:
        cli.main(["fit", f"--views={tmp_path}", f"--out={tmp_path / 'out'}"])
    said = f"e3d fit: {tmp_path} is not a folder of views: it has no transforms.json; add it, or give another folder"
    assert error.value.code == said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_progress_bar_shows_the_psnr(result):
    assert "psnr=" in result.progress and "dB" in result.progress
