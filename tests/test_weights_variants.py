"""Which files of a component folder are read."""

import json

import pytest

from e3d_jax.weights import variants


@pytest.fixture
def chosen(tmp_path):
    """Return the names of the files that are chosen among some."""

    def choose(*names):
        for name in names:
            (tmp_path / name).touch()
        return [path.name for path in variants.find_files(tmp_path)]

    return choose


@pytest.mark.parametrize("other", ["fp16", "non_ema", "bf16", "fp16.non_ema", "ema"])
def test_the_plain_file_is_used(chosen, other):
    plain = "diffusion_pytorch_model.safetensors"
    assert chosen(plain, f"diffusion_pytorch_model.{other}.safetensors") == [plain]


def test_weights_that_are_not_the_ema_are_left_aside(chosen):
    names = [f"diffusion_pytorch_model.{kind}.safetensors" for kind in ("fp16", "non_ema")]
    assert chosen(*names) == names[:1]


def test_the_ema_of_two_variants_is_used(chosen):
    assert chosen("model.raw.safetensors", "model.ema.safetensors") == ["model.ema.safetensors"]


def test_the_only_variant_is_used(chosen):
    assert chosen("model.non_ema.safetensors") == ["model.non_ema.safetensors"]


def test_several_variants_without_a_plain_one_are_named(chosen):
    with pytest.raises(ValueError, match=r"variants of its weights: m\.bf16\.safetensors, m\.fp16\.safetensors; keep"):
        chosen("m.fp16.safetensors", "m.bf16.safetensors")


def test_a_whole_file_is_used_instead_of_shards_without_an_index(chosen):
    shards = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    assert chosen("model.safetensors", *shards) == ["model.safetensors"]


def test_shards_need_no_index(chosen):
    shards = [f"model.fp16-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    assert chosen(*shards) == shards


def test_a_missing_shard_is_named(chosen):
    with pytest.raises(FileNotFoundError, match=r"lacks model-00002-of-00002\.safetensors; copy"):
        chosen("model-00001-of-00002.safetensors")


@pytest.mark.parametrize("index", ["model.fp16.safetensors.index.json", "model.safetensors.index.fp16.json"])
def test_the_index_of_a_variant_names_its_shards(chosen, tmp_path, index):
    (tmp_path / index).write_text(json.dumps({"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}))
    assert chosen("x.safetensors", "model.non_ema.safetensors") == ["x.safetensors"]
