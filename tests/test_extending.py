"""The code of docs/extending.md."""

import pathlib
import re

import pytest

from e3d_jax import stages

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture
def registry(monkeypatch):
    """What the page registers is gone after the test."""
    from e3d_jax.evaluation import metrics

    monkeypatch.setattr(stages, "STAGES", dict(stages.STAGES))
    monkeypatch.setattr(metrics, "VIEW_METRICS", dict(metrics.VIEW_METRICS))


def test_every_block_of_the_page_runs(registry, tmp_path, ball_folder):
    names = {"folder": str(tmp_path), "records": str(ball_folder), "__name__": "extending"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 8
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert (tmp_path / "weights" / "silhouette-00001-of-00001.safetensors").is_file()
