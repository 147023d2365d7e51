"""``e3d infer``: every flag and image that can be wrong, with a stand-in for the expensive stages."""

import pathlib
import runpy
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_outputs
from flax import nnx
from PIL import Image

from e3d_jax import cli, system
from e3d_jax.mesh import preview

ROOT = pathlib.Path(__file__).resolve().parents[1]


class FacingNormals(nnx.Module):
    def __call__(self, rgba):
        return jnp.broadcast_to(jnp.array([1.0, 0, 0]), (*rgba.shape[:3], 3))


class Cheap(system.System):
    """Reads and frames images as the real system does; the rest is made up."""

    def __init__(self, config):
        super().__init__(config, {"normals": FacingNormals()})

    def __call__(self, image, *, azimuths, elevation, fov, normal=None, seed=0, progress=False):
        for one in image:
            self.prepare(one, normal, elevation=elevation, fov=fov)
        return test_outputs.small_result()


@pytest.fixture
def infer(monkeypatch, tmp_path):
    """Runs the command in this process, in an empty folder."""
    monkeypatch.setattr(preview, "TURNTABLE_FRAMES", 2)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: cli.main(["infer", *map(str, arguments)])


@pytest.fixture
def cheap(infer, monkeypatch):
    monkeypatch.setattr(system, "load", lambda weights, config: Cheap(config))
    return infer


def disc(path, mode="RGBA", size=64, **options):
    y, x = np.mgrid[:size, :size]
    inside = np.hypot(x - size / 2, y - size / 2) < size / 3
    rgba = np.zeros((size, size, 4), np.uint8)
    rgba[inside] = [200, 40, 40, 255]
    if mode != "RGBA":
        rgba[~inside] = 255
    Image.fromarray(rgba).convert(mode).save(path, **options)
    return path


def message(infer, *arguments) -> str:
    """What a refused command line says: one sentence, and the exit status is not zero."""
    with pytest.raises(SystemExit) as stop:
        infer(*arguments)
    assert isinstance(stop.value.code, str), "a text, which exits with 1"
    assert "\n" not in stop.value.code and stop.value.code.startswith("e3d infer: ")
    return stop.value.code


# -- The right result -------------------------------------------------------------------------------------------------


def test_each_image_gets_a_folder_and_its_place_is_printed(cheap, tmp_path, capsys):
    cheap(disc(tmp_path / "a.png"), disc(tmp_path / "b.webp"), "--out=out/new", "--seed=3")
    assert {path.name for path in (tmp_path / "out/new").iterdir()} == {"a", "b"}
    assert "out/new/a/mesh.glb" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["opaque.jpg", "gray.png", "palette.png", "cmyk.jpg"])
def test_kinds_of_images(cheap, tmp_path, name):
    modes = {"opaque.jpg": "RGB", "gray.png": "L", "palette.png": "P", "cmyk.jpg": "CMYK"}
    path = tmp_path / name
    if modes[name] == "CMYK":
        Image.open(disc(tmp_path / "source.png", "RGB")).convert("CMYK").save(path)
    else:
        disc(path, modes[name])
    cheap(path, "--out=out")
    assert (tmp_path / "out" / path.stem / "mesh.glb").exists()


def test_an_animation_gives_its_first_frame_and_a_warning(cheap, tmp_path, capsys):
    frames = [Image.open(disc(tmp_path / f"{i}.png", "RGB", 64 + i)).resize((64, 64)) for i in range(2)]
    frames[0].save(tmp_path / "turning.gif", save_all=True, append_images=frames[1:])
    cheap(tmp_path / "turning.gif", "--out=out")
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "animated" in line]
    assert said.startswith("e3d infer: ")
    assert (tmp_path / "out/turning/report.json").exists()


def test_normal_map(cheap, tmp_path):
    cheap(disc(tmp_path / "a.png"), "--out=out", f"--normal={disc(tmp_path / 'n.png', 'RGB')}")
    assert (tmp_path / "out/a").is_dir()


def test_views_are_given_with_their_directions_and_cameras(cheap, tmp_path, monkeypatch):
    seen = {}

    class Listening(Cheap):
        def __call__(self, image, **options):
            seen.update(options, image=image)
            return test_outputs.small_result()

    monkeypatch.setattr(system, "load", lambda weights, config: Listening(config))
    cheap("a.png", "--view=right:b.png", "--view=210:c.png", "--elevation=25,auto,10", "--fov=35", "--out=out")
    assert [path.name for path in seen["image"]] == ["a.png", "b.png", "c.png"]
    assert (seen["azimuths"], seen["elevation"], seen["fov"]) == ([0, 90, 210], [25, None, 10], 35)


# -- One bad image does not stop the others --------------------------------------------------------------------------


def test_the_other_images_finish(cheap, tmp_path, capsys):
    (tmp_path / "text.png").write_text("hello")
    whole = disc(tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGBA", (64, 64)).save(tmp_path / "clear.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    busy = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(busy).save(tmp_path / "busy.png")
    bad = ["text.png", "half.png", "clear.png", "bomb.png", "busy.png", "missing.png"]
    said = message(cheap, *bad, "whole.png", "--out=out")
    assert said == "e3d infer: 6 of 7 images failed"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"], "and nothing half-written"
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in errors] == bad, "one line each"


def test_a_failed_rerun_keeps_the_result(cheap, tmp_path):
    cheap(disc(tmp_path / "a.png"), "--out=out")
    Image.new("RGBA", (1, 1)).save(tmp_path / "a.png")
    message(cheap, "a.png", "--out=out")
    assert (tmp_path / "out/a/mesh.glb").exists()


def test_a_folder_of_the_user_is_found_before_the_work(infer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(system, "load", lambda weights, config: pytest.fail)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notes.txt").touch()
    message(infer, disc(tmp_path / "a.png"), "--out=.")
    assert "is not an earlier result" in capsys.readouterr().err


# -- Command lines that are refused, before anything heavy is loaded -------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out=out"], "no image given"),
        (["a.png"], "--out is missing; give --out=VALUE"),
        (["a.png", "b.png", "--normal=n.png", "--out=out"], "--normal goes with one image, 2 are given"),
        (["a.png", "sub/a.jpg", "--out=out"], "several images are named"),
        (["a.png", "b.png", "--view=back:c.png", "--out=out"], "--view goes with one image, 2 are given"),
        (["a.png", "--view=side.png", "--out=out"], "--view is 'side.png'; expected DIRECTION:IMAGE, as in right:"),
        (["a.png", "--view=above:b.png", "--out=out"], "'above' is an unknown direction; expected front, right, back"),
        (["a.png", "--elevation=high", "--out=out"], "--elevation is 'high'; expected degrees, or auto"),
        (["a.png", "--fov=auto,wide", "--out=out"], "--fov is 'auto,wide'; expected degrees, or auto"),
        (["a.png", "--out=file/out"], "cannot write to file/out"),
        (["a.png", "--out=out", "--seed=-1"], "not an integer in the range"),
        (["a.png", "--out=out", "--seed=4294967296"], "not an integer in the range [0, 4294967295]"),
        (["a.png", "--out=out", "--bogus=1"], "Unknown command line flag 'bogus'"),
        (["a.png", "--out=out", "--config.siez=64"], "unknown setting siez; known: anchor, autoencoder,"),
        (["a.png", "--out=out", "--config.no.such=64"], "unknown setting no; known: "),
        (["a.png", "--out=out", "--config.size.x=64"], "unknown setting size.x"),
        (["a.png", "--out=out", "--config.size=many"], "--config.size is 'many'; expected an integer"),
        (["a.png", "--out=out", "--config=nowhere.py"], "no config nowhere.py; give one of mini, base, envision3d"),
        (["a.png", "--out=out", f"--config={ROOT}/configs/mini.py:big"], "no variant 'big'"),
        (["a.png", "--out=out", "--config=mini:big"], "no variant 'big'"),
        (["a.png", "--out=out", "--config.anchor.sampling.num_steps=0"], "num_steps is 0; expected at least 1 and at"),
        (["a.png", "--out=out", "--config.anchor.sampling.sampler=magic"], "expected one of ddim, euler"),
        (["a.png", "--out=out", "--weights=nowhere"], "no weights at 'nowhere'"),
    ],
)
def test_refused(infer, tmp_path, arguments, said):
    (tmp_path / "file").touch()
    assert said in message(infer, *arguments)


@pytest.mark.parametrize(
    ("body", "said"),
    [("assert 0", "AssertionError"), ("raise AttributeError", "AttributeError"), ("{}[3]", "KeyError: 3")],
)
def test_a_config_that_fails(infer, tmp_path, body, said):
    (tmp_path / "own.py").write_text(f"def get_config():\n    {body}\n")
    assert said in message(infer, "a.png", "--out=out", f"--config={tmp_path}/own.py")


def test_the_settings_are_those_of_the_weights(cheap, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(system, "load", lambda weights, config: seen.append(config) or Cheap(config))
    cheap(disc(tmp_path / "a.png"), "--out=out", "--config.anchor.sampling.num_steps=3")
    assert seen[0]["anchor"].sampling.num_steps == 3
    assert seen[0]["anchor"].train.steps == 5450  # of the run behind the bundled weights


@pytest.mark.parametrize("script", ["infer", "train"])
def test_the_scripts_at_the_top_are_short_for_the_commands(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith(f"e3d {script}: ")
