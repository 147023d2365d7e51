"""Import and export: every tensor maps once, nothing changes on the way, bad folders leave nothing behind."""

import filecmp
import json
import lzma
import re
import resource
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import released
from flax import nnx
from safetensors import numpy as safetensors_numpy

from e3d_jax import cli, settings, stages
from e3d_jax.models import layers
from e3d_jax.presets import envision3d
from e3d_jax.weights import convert, diffusers, folder, tensors, variants

MANIFESTS = json.loads(lzma.decompress((released.FIXTURE.parent / "released_manifests.json.xz").read_bytes()))
PARTS = [(stage, part) for stage, parts in convert.PARTS.items() for part in parts]
CONFIG = stages.parse_config(envision3d.get_config().to_dict())


def run(*argv):
    """Return the exit message of a command, None if it succeeds."""
    try:
        cli.main(["weights", *map(str, argv)])
    except SystemExit as end:
        return str(end.code)
    return None


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    return released.write_pipelines(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="module")
def normals(tmp_path_factory):
    """A weights folder with a normal estimator that is cheap to copy."""
    path = tmp_path_factory.mktemp("normals")
    folder.save(path, "normals", nnx.Linear(1, 1, rngs=nnx.Rngs(0)), stages.parse_config({"size": 64, "normals": {}}))
    return path


@pytest.fixture(scope="module")
def imported(pipelines, normals, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "weights"
    convert.import_pipelines(pipelines, out, CONFIG, normals)
    return out


@pytest.fixture(scope="module")
def exported(imported, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "pipelines"
    convert.export_pipelines(imported, out)
    return {stage: out / stage for stage in convert.PARTS}


@pytest.fixture
def copied(pipelines, tmp_path):
    """Pipelines that a test may damage."""
    shutil.copytree(pipelines["anchor"].parent, tmp_path / "copied")
    return {stage: tmp_path / "copied" / stage for stage in pipelines}


@pytest.mark.parametrize("stage, part", PARTS)
def test_every_tensor_of_the_full_size_release_maps_once(stage, part):
    manifest = MANIFESTS[f"{stage}/{part.folder}"]
    component = diffusers.COMPONENTS[part.kind]
    spec = getattr(CONFIG[part.component].model, part.network)
    module = nnx.eval_shape(lambda: component.module(spec, layers.Types(rngs=nnx.Rngs(0))))
    stored = {n: tensors.Tensor(tuple(s), np.dtype(np.float16), list) for n, s in manifest["tensors"].items()}
    matched = diffusers.match(module, stored, component)
    assert len(matched) == len(stored)
    assert sum(np.prod(tensor.shape) for tensor in matched.values()) == manifest["num_parameters"]


@pytest.mark.parametrize("stage, part", PARTS)
def test_the_full_size_config_has_the_released_sizes(stage, part):
    values = CONFIG.to_dict()
    convert.set_model(values, part, MANIFESTS[f"{stage}/{part.folder}"]["config"])
    assert not settings.differences(values, CONFIG.to_dict()) and values["size"] == 256


def test_an_imported_system_has_the_sizes_of_its_pipelines(imported):
    config = folder.read_config(imported)
    assert config.size == 64 and config["anchor"].model.unet.heads == 4


def test_import_keeps_every_bit(imported, pipelines):
    file = next((pipelines["anchor"] / "vae").glob("*.safetensors"))
    theirs = tensors.read_files([file])["quant_conv.weight"].read()
    ours = folder.read(imported, "autoencoder")["quant_conv.kernel"].read()
    assert ours.dtype == np.float16
    np.testing.assert_array_equal(ours[0, 0], theirs[:, :, 0, 0].T)


@pytest.mark.slow
def test_import_of_an_export_is_the_identity(imported, exported, normals, tmp_path):
    convert.import_pipelines(exported, tmp_path / "again", CONFIG, normals)
    names = sorted(file.name for file in imported.iterdir())
    assert filecmp.cmpfiles(imported, tmp_path / "again", names, shallow=False) == (names, [], [])


def test_large_parts_are_split_with_an_index(exported, tmp_path):
    part, source = convert.PARTS["anchor"][2], exported["anchor"] / "vae"
    whole = tensors.read_files(variants.find_files(source))
    convert.write_part(tmp_path, part, diffusers.read_config(source), whole, shard_bytes=100_000)
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = variants.find_files(tmp_path)
    assert len(files) > 3 and all(file.stat().st_size < 110_000 for file in files)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    parts = tensors.read_files(files)
    assert parts.keys() == whole.keys() == index["weight_map"].keys()
    for name in ("quant_conv.weight", "decoder.conv_out.bias"):
        np.testing.assert_array_equal(parts[name].read(), whole[name].read())


@pytest.mark.parametrize("stage, part", PARTS)
def test_an_export_has_the_released_names_configs_and_values(exported, pipelines, stage, part):
    original, copy = (root[stage] / part.folder for root in (pipelines, exported))
    config = diffusers.read_config(copy)
    for name, value in diffusers.read_config(original).items():
        assert config[name] == value, name
    theirs, ours = (tensors.read_files(variants.find_files(where)) for where in (original, copy))
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor.read(), ours[name].read())


@pytest.mark.slow
def test_export_casts(imported, tmp_path):
    assert run("export", f"--weights={imported}", "--dtype=bfloat16", f"--out={tmp_path / 'out'}") is None
    found = tensors.read_files(variants.find_files(tmp_path / "out" / "anchor" / "unet"))
    assert {tensor.dtype for tensor in found.values()} == {np.dtype(jnp.bfloat16)}


@pytest.fixture
def changed(imported, tmp_path):
    """A weights folder whose config a test may change."""

    def write(change):
        shutil.copytree(imported, tmp_path / "changed")
        config = json.loads((imported / folder.CONFIG).read_text())
        change(config)
        (tmp_path / "changed" / folder.CONFIG).write_text(json.dumps(config))
        return tmp_path / "changed"

    return write


@pytest.mark.slow
def test_export_fills_in_defaults(changed, exported, tmp_path):
    weights = changed(lambda config: config["anchor"]["model"]["unet"].pop("class_embed_dim"))
    convert.export_pipelines(weights, tmp_path / "out")
    with_defaults, full = (
        diffusers.read_config(root / "unet") for root in (tmp_path / "out/anchor", exported["anchor"])
    )
    assert with_defaults == full


@pytest.mark.slow
def test_a_system_that_shares_its_autoencoder_is_not_exported(changed, tmp_path):
    weights = changed(lambda config: config.pop("interpolation_autoencoder"))
    end = run("export", f"--weights={weights}", f"--out={tmp_path / 'out'}")
    assert "has no interpolation_autoencoder" in end and not (tmp_path / "out").exists()


def test_an_anchor_stage_without_injection_is_not_exported(changed, tmp_path):
    weights = changed(lambda config: config["anchor"]["model"].update(injection=False))
    end = run("export", f"--weights={weights}", f"--out={tmp_path / 'out'}")
    assert "has no injection" in end and not (tmp_path / "out").exists()


def test_an_anchor_stage_with_a_shift_is_not_exported(changed, tmp_path):
    weights = changed(lambda config: config["anchor"]["diffusion"].update(shift=2.0))
    end = run("export", f"--weights={weights}", f"--out={tmp_path / 'out'}")
    assert "anchor.diffusion.shift is 2.0" in end and not (tmp_path / "out").exists()


def test_an_export_is_a_pipeline_of_diffusers(exported):
    root = exported["interpolation"]
    index = json.loads((root / "model_index.json").read_text())
    assert index["unet"][1] == "UNetSpatioTemporalConditionModel"
    scheduler = json.loads((root / "scheduler/scheduler_config.json").read_text())
    assert scheduler["sigma_max"] == 700.0 and scheduler["_class_name"] == index["scheduler"][1]


def damage_pipeline(anchor):
    (anchor / "model_index.json").unlink()


def damage_pickle(anchor):
    (anchor / "unet" / "model.safetensors").rename(anchor / "unet" / "model.bin")


def damage_truncated(anchor):
    file = anchor / "vae" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_config(**changes):
    def damage(anchor):
        path = anchor / "unet" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def damage_json(anchor):
    (anchor / "unet" / "config.json").write_text("[1]")


def damage_part(anchor):
    shutil.rmtree(anchor / "vae")


def damage_file(anchor):
    (anchor / "vae" / "model.safetensors").unlink()
    (anchor / "vae" / "model.safetensors").mkdir()


def damage_stage(anchor):
    shutil.rmtree(anchor / "unet")
    shutil.copytree(anchor.parent / "interpolation" / "unet", anchor / "unet")


def damage_values(anchor):
    file = anchor / "vae" / "model.safetensors"
    found = tensors.read_files([file])
    bad = tensors.Tensor((8,), np.dtype(np.float16), lambda: np.full(8, np.nan, np.float16))
    raw = {name: tensor.read() for name, tensor in (found | {"quant_conv.bias": bad}).items()}
    safetensors_numpy.save_file(raw, file)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage, message",
    [
        (damage_pipeline, "is not a pipeline: it has no model_index.json"),
        (damage_pickle, r"holds only pickles \(model.bin\)"),
        (damage_truncated, "damaged or incomplete, not a safetensors file"),
        (damage_part, r"missing file .*vae/config\.json; give a whole pipeline"),
        (damage_file, r"vae/model\.safetensors cannot be read"),
        (damage_json, r"unet/config\.json is not a JSON object"),
        (
            damage_config(block_out_channels=32),
            r"unet: config\.json does not describe a valid AnchorUNet \(block_out_channels is 32; expected a sequence",
        ),
        (damage_config(attention_head_dim=7), "7 attention heads do not divide 32 channels"),
        (damage_config(sample_size="8"), "sample_size '8'; expected the width of the latents"),
        (damage_config(_class_name=None), "is of no known class, but component anchor needs a UNetMV2DConditionModel"),
        (
            damage_config(cross_attention_dim=48),
            r"attn2.to_k.weight has shape \(32, 32\), expected \(32, 48\); .*attn2.to_v",
        ),
        (damage_stage, "but component anchor needs a UNetMV2DConditionModel"),
        (damage_values, "quant_conv.bias has values that are not finite"),
    ],
)
def test_a_bad_pipeline_is_refused_and_leaves_nothing(copied, normals, tmp_path, damage, message):
    damage(copied["anchor"])
    options = [f"--{stage}={path}" for stage, path in copied.items()]
    out = tmp_path / "results" / "weights"
    end = run("import", *options, f"--normals={normals}", f"--out={out}")
    assert end is not None and re.search(message, end) and "\n" not in end
    assert not out.parent.exists() or not list(out.parent.iterdir())


@pytest.mark.slow
def test_a_full_disk_is_refused(pipelines, normals, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"the disk has 0\.0 GB left"):
        convert.import_pipelines(pipelines, tmp_path / "out", CONFIG, normals)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_disk_that_fills_up_is_refused_and_leaves_nothing(pipelines, normals, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*; nothing was left behind"):
            convert.import_pipelines(pipelines, tmp_path / "out", CONFIG, normals)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["raise RuntimeError", "x = 1"])
def test_a_file_that_is_not_a_config_is_refused(pipelines, tmp_path, text):
    (tmp_path / "config.py").write_text(text)
    options = [f"--{stage}={path}" for stage, path in pipelines.items()]
    end = run("import", *options, f"--config={tmp_path / 'config.py'}", f"--out={tmp_path / 'out'}")
    assert end is not None and re.search(r"config\.py is not a config \(", end) and "\n" not in end


@pytest.mark.parametrize("name, value", [("size", "x"), ("anchor", []), ("autoencoder", 3)])
def test_export_refuses_a_damaged_config(imported, tmp_path, name, value):
    (tmp_path / "weights").mkdir()
    config = json.loads((imported / folder.CONFIG).read_text()) | {name: value}
    (tmp_path / "weights" / folder.CONFIG).write_text(json.dumps(config))
    end = run("export", f"--weights={tmp_path / 'weights'}", f"--out={tmp_path / 'out'}")
    assert (
        end is not None
        and f"config.json is damaged or of another version: {name} is {value!r}; expected" in end
        and "\n" not in end
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_folder_in_use_is_not_replaced(imported, normals, pipelines):
    with pytest.raises(OSError, match="exists and is not empty"):
        convert.import_pipelines(pipelines, imported, CONFIG, normals)


def test_values_that_overflow_are_refused(tmp_path):
    big = tensors.Tensor((1,), np.dtype(np.float32), lambda: np.full(1, 1e6, np.float32))
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="big has values that are not finite in float16"):
        tensors.write(tmp_path / "file.safetensors", {"big": big.astype(np.dtype(np.float16))})
    assert not list(tmp_path.iterdir())
