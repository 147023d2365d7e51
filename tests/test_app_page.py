"""The page without a browser: what Gradio serves, and what it does not."""

import os
import pathlib

import gradio as gr
import numpy as np
import pytest
from fastapi.testclient import TestClient

from e3d_jax.app import api, jobs, page, schema, view
from tests import app_maker
from tests.test_app_jobs import bad_pictures, end_of, picture_bytes, request


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    queue = jobs.Jobs(tmp_path_factory.mktemp("app") / "jobs", app_maker.make)
    yield queue
    queue.close()


@pytest.fixture(scope="module")
def client(queue):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pathlib.Path.cwd())  # Comes back here.
        patch.setenv("GRADIO_TEMP_DIR", "")
        yield TestClient(page.mount(api.make_app(queue), queue))


def upload(client, name, data):
    return client.post("/gradio_api/upload", files={"files": (name, data)})


def uploads(queue):
    return [path for path in (queue.folder / page.UPLOADS).rglob("*") if path.is_file()]


def test_the_page_and_the_interface_are_served_together(client):
    assert "e3d_jax" in client.get("/").text
    assert client.get("/api/openapi.json").json()["info"]["title"] == "e3d_jax"


def test_the_page_has_no_paths_of_the_machine(client, queue):
    for path in ("/", "/config", "/theme.css", "/api/openapi.json"):
        text = client.get(path).text
        assert not [name for name in (str(queue.folder), str(page.EXAMPLES.parent), os.getcwd()) if name in text]


def test_examples_are_served(client):
    assert client.get("/examples/cake.png").content == (page.EXAMPLES / "cake.png").read_bytes()
    for path in ("../page.py", "%2e%2e/page.py", "..%2fpage.py"):
        assert client.get(f"/examples/{path}").status_code == 404


def test_nothing_of_the_page_is_loaded_from_elsewhere(client):
    config = client.get("/config").json()
    assert not config["stylesheets"] and not config["analytics_enabled"]
    assert "fonts.googleapis" not in client.get("/theme.css").text


@pytest.mark.parametrize("path", ["/etc/passwd", "etc/passwd", "../../etc/passwd", "job.json", ".lock", "http://a.b/c"])
def test_other_files_of_the_machine_are_not_served(client, path):
    assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_files_of_jobs_are_served_by_their_own_addresses_alone(client, queue):
    job = queue.submit(request())
    end_of(queue, job)
    for path in (f"{job}/0", f"{job}/job.json", f"{queue.folder}/{job}/result/mesh.glb"):
        assert client.get(f"/gradio_api/file={path}").status_code == 403
    assert client.get(f"/api/jobs/{job}/files/mesh.glb").status_code == 200


def test_fetching_for_others_is_off(client):
    for path in ("file=https://example.com/a.png", "proxy=https://example.com/a.png"):
        assert client.get(f"/gradio_api/{path}").status_code == 403


@pytest.mark.parametrize(
    "name", ["../../../evil.png", "/etc/evil.png", "..\\evil.png", "a/../../evil.png", "evil\x00.png"]
)
def test_names_of_uploads_lead_nowhere_and_answers_have_no_paths(client, queue, name):
    answer = upload(client, name, picture_bytes())
    assert str(queue.folder) not in answer.text and str(pathlib.Path.home()) not in answer.text
    assert all(page.UPLOADS in path.parts for path in queue.folder.parent.rglob("*evil*"))


def test_an_upload_of_200_megabytes_leaves_nothing(client, queue):
    answer = upload(client, "large.png", bytes(200_000_000))
    assert answer.status_code == 413
    assert not [path for path in uploads(queue) if path.stat().st_size > 10**6]


def test_an_upload_above_the_size_of_a_picture_leaves_nothing(client, queue):
    answer = upload(client, "large.png", bytes(schema.MAX_BYTES + 10**6))
    assert answer.status_code == 413
    assert not [path for path in uploads(queue) if path.stat().st_size > 10**6]


# -- The form ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Writes a picture, and returns its path."""

    def write(data, name="a.png"):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", bad_pictures())
def test_a_bad_picture_is_named_and_no_picture_stays(files, name, monkeypatch):
    said = []
    monkeypatch.setattr(gr, "Warning", said.append)
    given = [files(picture_bytes()), files(bad_pictures()[name], "bad.png")]
    cleared, shown, *_ = page.look(given, 0, "right", "back", "left")
    assert cleared is None and not shown
    assert len(said) == 1 and said[0].startswith("picture 2 ") and "/" not in said[0]
    assert not any(map(os.path.exists, given))


def test_directions_are_asked_for_as_there_are_pictures(files):
    given = [files(picture_bytes(), f"{number}.png") for number in range(3)]
    *_, second, third, fourth = page.look(given, 0, "right", "back", "left")
    assert [each.visible for each in (second, third, fourth)] == [True, True, False]


def form(paths, **changes):
    values = {"second": "right", "third": "back", "fourth": "left", "tolerance": 0, "seed": 3, "quality": "fast"}
    values |= {"steps": "auto", "elevation": "auto", "up": "z", "size": ""} | changes
    return page._request(paths, *values.values())


def test_the_form_becomes_a_request(files):
    path = files(picture_bytes())
    made = form([path, path], second="210", tolerance=0.2, elevation="0", size="0.1")
    assert [picture.azimuth for picture in made.pictures] == ["front", 210.0]
    assert made.pictures[0].data == picture_bytes()
    assert (made.tolerance, made.seed, made.steps, made.elevation, made.size) == (0.2, 3, None, 0, 0.1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"second": "above"}, "pictures.1.azimuth"),
        ({"steps": "many"}, "steps: Input should be a valid integer"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_wrong_value_is_named(files, changes, said):
    path = files(picture_bytes())
    with pytest.raises(gr.Error, match=said), page._sentences():
        form([path, path], **changes)


def test_no_picture_is_a_sentence():
    with pytest.raises(gr.Error, match="give at least one picture"), page._sentences():
        form(None)


# -- What is shown ----------------------------------------------------------------------------------------------------


def job(state, files=(), **progress):
    return schema.Job(id="j", progress=schema.Progress(state=state, **progress), files=list(files), expires=0)


def test_compiling_and_the_remaining_time_are_said():
    shown = view.progress(job("running", stage="anchors", total=8, compiling=True, remaining=75))
    assert "Draw 8 views: compiling, which is needed once; about 75 s left" in shown
    shown = view.progress(job("running", stage="reconstruction", done=500, total=1000, remaining=200))
    assert "Fit the mesh: step 500 of 1000; about 3 min left" in shown and "value='500' max='1000'" in shown


def test_text_of_others_is_escaped():
    shown = view.progress(job("failed", message="<script>", warnings=["<b>"]))
    assert "<script>" not in shown and "<b>" not in shown
    assert "<i>" not in view.cutouts([(np.ones((4, 4, 4)), "<i>")])


def test_each_view_has_the_normals_of_the_nearest_anchor():
    names = [f"views/rgb_{v:02d}.png" for v in range(32)] + [f"views/normal_{v:02d}.png" for v in range(0, 32, 4)]
    shown = view.result(job("done", names))
    assert "normal_00.png' data-views='0 1 2 30 31'" in shown and "normal_04.png' data-views='3 4 5 6'" in shown


def test_only_files_that_there_are_can_be_downloaded():
    shown = view.result(job("done", ["views/rgb_00.png", "mesh.glb", "mesh.stl"]))
    assert "Download GLB" in shown and "Download STL" in shown and "Download USDZ" not in shown
