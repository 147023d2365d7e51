"""The report beside a result."""

import json

import numpy as np
import pytest

from e3d_jax import reports, structs

TRIANGLE = structs.Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]), np.ones((3, 3), np.float32))


@pytest.fixture
def written(tmp_path):
    report = reports.report(
        seed=7,
        seconds={"fit": 0.5},
        peak_memory_gb={"fit": reports.peak_memory_gb()},
        mesh=TRIANGLE,
        settings={"widths": (1, 2)},
        views=8,
    )
    reports.write(tmp_path, report)
    return json.loads((tmp_path / "report.json").read_text())


def test_a_report_says_what_made_a_result(written):
    assert written["seed"] == 7 and written["settings"] == {"widths": [1, 2]}
    assert {"e3d_jax", "python", "jax", "jaxlib", "flax", "numpy"} == set(written["versions"])


def test_a_report_says_what_a_result_took(written):
    assert written["seconds"] == {"fit": 0.5} and written["device"]["platform"] == "cpu"
    assert 0.01 < written["peak_memory_gb"]["fit"] < 1000


def test_a_report_counts_the_mesh_and_keeps_more_entries(written):
    assert written["mesh"] == {"vertices": 3, "faces": 1} and written["views"] == 8
