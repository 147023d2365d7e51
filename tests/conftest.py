"""Shapes and types of every public function are checked while the tests run."""

import importlib.util
import os
import resource

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Sharding is tested on four simulated devices.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import jax
import jaxtyping
import numpy as np
import pytest

# Tests of the app need its extra.
collect_ignore_glob = [] if importlib.util.find_spec("fastapi") else ["test_app*.py"]
jaxtyping.install_import_hook("e3d_jax", "beartype.beartype")
# Compiling dominates the tests; a second run finds everything here.
jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/e3d_jax/tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def ball_record(index: int = 0, size: int = 32):
    """The record of a half red, half blue ball: small, exact, made without a renderer."""
    from e3d_jax import cameras
    from e3d_jax.data import records

    ring = cameras.ring(size)
    rays = cameras.image_rays(ring)
    origin, direction = np.asarray(rays.origins), np.asarray(rays.directions)
    along = -(origin * direction).sum(-1)
    gap = 0.4**2 - ((origin + along[..., None] * direction) ** 2).sum(-1)
    hit = gap > 0
    normal = (origin + (along - np.sqrt(np.maximum(gap, 0)))[..., None] * direction) / 0.4
    color = np.where(normal[..., 1:2] > 0, [1.0, 0, 0], [0, 0, 1.0])

    def over_white(rgb):
        image = np.concatenate([np.where(hit[..., None], rgb, 1), hit[..., None]], -1)
        return (image * 255).round().astype(np.uint8)

    rig = records.Rig.of_layout(cameras.RELEASED, size)
    normals = over_white((normal + 1) / 2)
    maps = {"color": dict(enumerate(over_white(color))), "normal": {view: normals[view] for view in rig.normal_views}}
    return records.encode(f"ball-{index}", {"generator": "test", "index": index}, rig, maps)


@pytest.fixture(scope="session")
def ball_folder(tmp_path_factory):
    """Two shards of four balls each."""
    from e3d_jax.data import records

    folder = tmp_path_factory.mktemp("records")
    for shard in range(2):
        with records.Writer(folder / f"balls-{shard}.array_record") as writer:
            for index in range(4):
                writer.write(records.pack(ball_record(4 * shard + index)))
    return folder


@pytest.fixture
def full_disk():
    """No file may grow beyond a kilobyte, which writers notice as they notice a full disk."""
    _, most = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def ball():
    """One ball's record."""
    return ball_record()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The URL of a bucket that is kept in memory; copies of it are in a folder of the test."""
    monkeypatch.setenv("E3D_STORE_CACHE", str(tmp_path / "copies"))
    return f"memory://{tmp_path.name}"


@pytest.fixture(scope="module")
def toy_stages():
    """The stages of tests/toy.py, known while a module is tested."""
    from tests import toy

    with pytest.MonkeyPatch.context() as patch:
        toy.register(patch)
        yield
