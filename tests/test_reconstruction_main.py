"""The command: its files, its options, and one sentence for what it cannot use."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_reconstruction_fit as sphere
from PIL import Image

from e3d_jax import cameras, views_io
from e3d_jax.mesh import export, preview
from e3d_jax.reconstruction import __main__ as command
from e3d_jax.reconstruction import draw, fit, pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Views of a red ball."""
    path = tmp_path_factory.mktemp("views")
    views_io.write_views(path, sphere.sphere_views())
    return path


@pytest.fixture
def run(monkeypatch):
    """Calls the command with a tiny quality; gives back what it said."""
    tiny = pipeline.SurfaceConfig(resolution=24, max_faces=600, texture_size=32)
    monkeypatch.setattr(pipeline, "QUALITIES", {"standard": (sphere.TINY, tiny)})
    monkeypatch.setattr(preview, "TURNTABLE_FRAMES", 2)
    monkeypatch.setattr(command, "PREVIEW_SIZE", 16)

    return lambda *arguments: command.main([*arguments])


def test_files_and_report(run, folder, tmp_path, capsys):
    run(f"--views={folder}", f"--out={tmp_path}", "--obj", "--preview=0.0001", "--faces=200", "--texture-size=16")
    mesh, other = export.read_mesh(tmp_path / "mesh.glb"), export.read_mesh(tmp_path / "mesh.obj")
    assert len(mesh.faces) <= 200 and mesh.texture.image.shape == (16, 16, 3)
    np.testing.assert_allclose(other.vertices.max(0), mesh.vertices.max(0), atol=1e-5)
    assert Image.open(tmp_path / "turntable.gif").n_frames == 2
    assert Image.open(tmp_path / "preview.png").size == (32, 16)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (
        report["surface"]["max_faces"] == 200 and report["normal_maps"] == 8 and report["final_losses"]["psnr_db"] > 5
    )
    assert "psnr=" in capsys.readouterr().err


def test_options_change_the_quality(run):
    options = command.parse(["--views=a", "--out=b", "--steps=40", "--resolution=10", "--faces=123"])
    fitting, surface = command.settings(options)
    assert fitting == dataclasses.replace(sphere.TINY, steps=40, steps_per_chunk=10)
    assert surface == pipeline.SurfaceConfig(resolution=10, max_faces=123, texture_size=32)


def test_normal_maps_can_be_ignored(run, folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(pipeline, "reconstruct", lambda views, *_, **__: seen.append(views) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(f"--views={folder}", f"--out={tmp_path}", "--no-normals")
    assert len(seen[0].normals) == len(seen[0].normal_views) == 0


def test_a_folder_without_views_in_one_sentence(run, tmp_path):
    with pytest.raises(SystemExit, match=r"error: .* is not a folder of views"):
        run(f"--views={tmp_path}", f"--out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_one_view_is_enough_but_warns():
    views = sphere.sphere_views()
    one = dataclasses.replace(
        views,
        rgba=views.rgba[:1],
        cameras=views.cameras[[0]],
        normal_views=np.arange(1),
        normals=views.normals[:1],
        anchors=np.arange(1),
    )
    with pytest.warns(UserWarning, match="one view"):
        field, _ = fit.start(one, sphere.TINY, jax.random.key(0))
    assert np.isfinite(field.base).all()


def test_cameras_that_look_elsewhere_are_named():
    views = sphere.sphere_views()
    poses = np.array(views.cameras.world_from_cam)
    poses[3, :3, :3] = poses[3, :3, :3] @ np.diag([-1.0, 1, -1])  # turned around
    away = dataclasses.replace(views, cameras=dataclasses.replace(views.cameras, world_from_cam=poses))
    with pytest.raises(ValueError, match="cameras of views 3 do not look at the object"):
        fit.fit(away, sphere.TINY, jax.random.key(0))


def test_a_pose_that_is_not_finite_is_named():
    views = sphere.sphere_views()
    poses = np.array(views.cameras.world_from_cam)
    poses[2, 0, 3] = np.nan
    broken = dataclasses.replace(views, cameras=dataclasses.replace(views.cameras, world_from_cam=poses))
    with pytest.raises(ValueError, match="poses of views 2 are not finite"):
        fit.fit(broken, sphere.TINY, jax.random.key(0))


@pytest.mark.parametrize("kind", ["empty", "another"])
def test_a_view_of_something_else_is_left_out(kind):
    views = sphere.sphere_views(num_views=32)
    rgba = views.rgba.copy()
    rgba[4] = np.roll(rgba[4], 12, 0) * [1, 1, 1, kind == "another"]
    with pytest.warns(UserWarning, match="views 4 show another shape"):
        field, pixels = fit.start(dataclasses.replace(views, rgba=rgba), sphere.TINY, jax.random.key(0))
    np.testing.assert_array_equal(pixels.weights, np.arange(32) != 4)
    true, _ = fit.start(views, sphere.TINY, jax.random.key(0))
    np.testing.assert_allclose(field.base, true.base, atol=0.03)


def test_drawn_field_is_the_ball():
    field, _ = fit.start(sphere.sphere_views(), sphere.TINY, jax.random.key(0))
    sharp = dataclasses.replace(field, log_sharpness=jnp.log(1000.0))
    rgba, normals = draw.draw(sharp, cameras.ring(33)[:1])
    assert rgba.shape == normals.shape == (33, 33, 4)
    assert rgba[16, 16, 3] > 0.9 and rgba[0, 0, 3] < 0.01
    np.testing.assert_allclose(normals[16, 16, :3], [1, 0.5, 0.5], atol=0.1)


def test_qualities_are_ordered():
    steps = [fitting.steps for fitting, _ in pipeline.QUALITIES.values()]
    faces = [surface.max_faces for _, surface in pipeline.QUALITIES.values()]
    assert steps == sorted(steps) and faces == sorted(faces)
