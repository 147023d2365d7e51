"""What jobs make with a system, here one that is quick."""

import json
import zipfile

import numpy as np
import pytest
import trimesh
from PIL import Image

from e3d_jax.app import jobs, pictures, schema, worker
from e3d_jax.mesh import preview
from e3d_jax.reconstruction import config as reconstruction
from tests import app_system
from tests.test_app_jobs import picture_bytes


@pytest.fixture(autouse=True)
def short_turntable(monkeypatch):
    monkeypatch.setattr(preview, "TURNTABLE_FRAMES", 2)


def run(folder, maker=None, azimuths=(0.0,), **options):
    """The progress of a job whose pictures are squares."""
    folder.mkdir(exist_ok=True)
    for number in range(len(azimuths)):
        (folder / str(number)).write_bytes(picture_bytes(64))
    maker = maker or worker.Maker(app_system.Ball())
    return list(maker(folder, schema.Options(**options), list(azimuths)))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "TURNTABLE_FRAMES", 2)
        happened = run(folder, size=0.2, up="y", seed=3)
    return folder, happened


def test_steps_of_all_stages_are_reported_in_order(job):
    stages = [progress.stage for progress in job[1]]
    assert list(dict.fromkeys(stages)) == list(worker.STAGES)
    assert [p.done for p in job[1] if p.stage == "anchors"] == list(range(app_system.STEPS + 1))


def test_compiling_is_said_until_the_first_steps_and_once(tmp_path):
    maker = worker.Maker(app_system.Ball())
    first, second, other = run(tmp_path, maker), run(tmp_path, maker), run(tmp_path, maker, steps=3)
    assert [p.stage for p in first if p.compiling] == list(worker.STAGES[:-1])
    assert not any(p.compiling for p in second)
    assert any(p.compiling for p in other), "another number of steps is another program"


def test_the_remaining_time_is_known_from_the_second_job_on(tmp_path):
    maker = worker.Maker(app_system.Ball(0.01))
    first, second = run(tmp_path, maker), run(tmp_path, maker)
    assert first[0].remaining is None
    known = [p.remaining for p in second]
    assert None not in known and known[0] > known[-2] >= known[-1] == 0


def test_the_files_are_those_of_the_command_and_all_formats(job):
    files = jobs._names(job[0] / jobs.RESULT)
    assert {"mesh.glb", "mesh.stl", "mesh.ply", "mesh.usdz", "mesh_obj.zip", "mesh_normals.glb", "views.zip"} <= set(
        files
    )
    assert {"report.json", "input.png", "views/transforms.json", "views/rgb_31.png", "views/normal_28.png"} <= set(
        files
    )
    assert json.loads((job[0] / jobs.RESULT / "report.json").read_text())["seed"] == 3


def test_size_and_axis_are_those_that_are_asked_for(job):
    lengths = trimesh.load_mesh(job[0] / jobs.RESULT / "mesh.stl").extents
    np.testing.assert_allclose(lengths, 200, rtol=0.01)


def test_archives_hold_what_belongs_together(job):
    with zipfile.ZipFile(job[0] / jobs.RESULT / "mesh_obj.zip") as archive:
        names = set(archive.namelist())
        mtl = archive.read("mesh.mtl").decode()
    assert {"mesh.obj", "mesh.mtl"} < names and len(names) == 3
    assert any(f"map_Kd {name}" in mtl for name in names)
    with zipfile.ZipFile(job[0] / jobs.RESULT / "views.zip") as archive:
        assert "transforms.json" in archive.namelist()


def test_previews_show_the_picture_and_the_views(job):
    with Image.open(job[0] / jobs.PREVIEW / "views.png") as shown:
        assert shown.size == (worker.SHOWN * app_system.SIZE, 2 * app_system.SIZE)
    assert (job[0] / jobs.PREVIEW / "input.png").exists()


def test_options_change_the_settings():
    model = worker.with_options(app_system.Ball(), schema.Options(steps=7, quality="fast"))
    assert model.config["anchor"].sampling.num_steps == model.config["interpolation"].sampling.num_steps == 7
    plain = app_system.Ball()
    of_weights = plain.config.system.reconstruction
    assert model.config.system.reconstruction == reconstruction.at_quality(of_weights, "fast")
    assert worker.with_options(plain, schema.Options()).config == plain.config


def test_what_a_system_refuses_is_a_refusal(tmp_path):
    with pytest.raises(pictures.Refused, match="images 1 and 2 are both from azimuth 0; give images"):
        run(tmp_path, azimuths=(0.0, 0.0))


def test_warnings_go_with_the_progress(job):
    assert [said.partition(" is ")[0] for said in job[1][-1].warnings] == ["the opaque part of the picture"]
