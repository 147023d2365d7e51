"""Stages as small as stages get, each of them one object: facts about training are tested with them.

``toy`` learns to multiply four numbers by 3; ``user`` needs a trained ``toy`` to do the same, and shows images.
"""

import dataclasses
import types
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
from flax import nnx

from e3d_jax import config as config_lib
from e3d_jax import settings, stages
from e3d_jax.data import records
from e3d_jax.stages import base

SIZE = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearSpec(settings.Settings):
    """Settings of a linear layer."""

    features: int = settings.setting("Outputs.", 4)
    scale: float = settings.setting("Factor of the outputs; changes no shape.", 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(base.ModelSettings):
    """Settings of the only network."""

    architecture: str = settings.setting("Which network.", "linear", choices=("linear",))
    linear: LinearSpec = settings.setting("A linear layer.", LinearSpec())


class Linear(nnx.Module):
    """Two layers, so that one of them can be frozen."""

    def __init__(self, spec, dtype, rngs):
        self.scale = spec.scale
        self.inner = nnx.Linear(4, spec.features, dtype=dtype, rngs=rngs)
        self.outer = nnx.Linear(spec.features, 4, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.scale * self.outer(self.inner(x))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Four random numbers per example, and which record they belong to."""

    x: Any
    index: Any


class Numbers(base.Source):
    """Records that hold nothing but their number."""

    def unpack(self, data):
        fields = records.fields_of(data)
        return types.SimpleNamespace(id=fields["id"], index=fields["index"])

    def check(self, record, config):
        if config.size != SIZE:
            raise ValueError(f"holds images of {SIZE} px, but the config wants {config.size} px")

    def example(self, record, rng, config):
        return Batch(rng.standard_normal(4).astype(np.float32), np.int32(record.index))

    def spec(self, config):
        return Batch(jax.ShapeDtypeStruct((4,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))


class Toy(base.Stage):
    """Learns alone."""

    name = "toy"
    sources: ClassVar = {"images": Numbers(), "latents": Numbers()}
    model = Model

    def build(self, model, types):
        return Linear(model.linear, types.dtype, types.rngs)

    def check_source(self, kind, settings):
        if kind == "latents" and "inner" not in settings.train.freeze:
            raise ValueError("the toy stage trains its inner layer, which latents hold already")

    def loss(self, model, frozen, batch, key, settings, layout):
        error = model(batch.x) - 3 * batch.x
        return (error**2).mean(), {"noise": jax.random.normal(key)}


class User(Toy):
    """Learns to correct a trained toy."""

    name = "user"
    needs = ("toy",)

    def check_source(self, kind, settings):
        pass

    def loss(self, model, frozen, batch, key, settings, layout):
        toy = frozen["toy"](batch.x) if frozen else 0.0
        return ((model(batch.x) + toy - 3 * batch.x) ** 2).mean(), {}

    @staticmethod
    def show(model, frozen, batch, key, settings, layout):
        gray = jnp.broadcast_to((batch.index / 10)[:, None, None, None, None], (len(batch.index), 2, 3, 4, 3))
        return gray, jnp.full_like(gray, model.scale / 2)


def register(patch) -> None:
    """Make the stages known until a MonkeyPatch is undone."""
    for stage in (Toy(), User()):
        patch.setitem(stages.STAGES, stage.name, stage)


def config(*, system=None, model=None, **training) -> config_lib.SystemConfig:
    """Return a system of the two stages that trains each for four steps, with some settings changed."""
    train = {"batch_size": 4, "steps": 4, "warmup_steps": 1, "loader_workers": 0, "log_every": 2, "checkpoint_every": 2}
    component = {"model": {"linear": model or {}}, "train": train | {"learning_rate": 0.1} | training}
    return stages.parse_config({"size": SIZE, **(system or {}), "toy": component, "user": component})


def padding_of(index, count):
    """Return bytes that no compression changes."""
    return np.random.default_rng(index).bytes(count)


def write_records(folder, count=8, kind="images", padding=0):
    """Write a shard of records; ``padding`` bytes make each of them longer."""
    folder.mkdir(parents=True, exist_ok=True)
    with records.Writer(folder / "toys.array_record") as writer:
        for index in range(count):
            fields = {"schema": records.SCHEMA, "kind": kind, "id": f"toy-{index}", "index": index}
            writer.write(msgpack.packb(fields | {"padding": padding_of(index, padding)}))
    return folder
