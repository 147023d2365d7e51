"""What a step needs, found without running it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax import presets, stages
from e3d_jax.data import loader
from e3d_jax.training import costs, plan
from tests import tiny

PROGRAM = """
  %all-gather-start.1 = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(bf16[8,4]{1,0} %p)
  %all-gather-done.1 = bf16[32,4]{1,0} all-gather-done(%all-gather-start.1)
  %all-reduce.2 = (f32[2,3]{1,0}, f32[]) all-reduce(f32[2,3]{1,0} %a, f32[] %b), to_apply=%add
  ROOT %add.3 = f32[2,3]{1,0} add(%all-reduce.2, %all-reduce.2)
"""


def test_collectives_are_read_from_a_program():
    assert costs.collectives(PROGRAM) == {"all-gather": (1, 256.0), "all-reduce": (1, 28.0)}


@pytest.fixture(scope="module")
def planned():
    """The tiny estimator on four devices, parameters split over two."""
    values = tiny.config().to_dict() | {"mesh": {"data": 2, "fsdp": 2, "tensor": 1}}
    return plan.make_plan(stages.parse_config(values), "normals", jax.devices(), "images")


@pytest.mark.slow
def test_a_plan_counts_what_a_device_stores(planned):
    assert 1.9 < planned.memory["optimizer"] / planned.memory["parameters"] < 2.1
    assert planned.memory["EMA"] == planned.memory["parameters"]
    # One example per device: two images and a camera.
    assert planned.memory["batch"] == 2 * 32 * 32 * 4 + 4 * (16 + 2 + 2)


@pytest.mark.slow
def test_a_plan_finds_the_exchange_of_parameters(planned):
    assert planned.collectives["all-gather"][0] > 0
    assert planned.flops > 0 and planned.fits is None


@pytest.mark.slow
def test_a_plan_as_text_names_every_kind_of_memory(planned):
    text = plan.report(planned)
    assert all(kind in text for kind in planned.memory)


def test_settings_that_need_less_memory_divide_the_batch():
    config = stages.parse_config(presets.load("envision3d").to_dict())
    tried = [(name, changed["anchor"].train) for name, changed in plan.alternatives(config, "anchor", 256)]
    assert tried[0][0] == "mesh.data=-1 mesh.fsdp=64"
    assert [train.grad_accum_steps for _, train in tried if train.grad_accum_steps > 1] == [2]


@pytest.mark.parametrize("stage", stages.STAGES)
def test_planned_examples_are_those_of_the_loader(ball_folder, stage):
    config, source = tiny.config(), stages.get(stage).sources["images"]
    _, batch = next(loader.make_loader({str(ball_folder): 1.0}, source, config, batch_size=1, seed=0))
    made, planned = jax.tree.leaves(batch), jax.tree.leaves(source.spec(config))
    assert [(x.shape[1:], x.dtype) for x in made] == [(x.shape, x.dtype) for x in planned]


@pytest.mark.parametrize(
    ("stage", "freeze", "reason"),
    [
        ("normals", (), "the normals stage trains on images, not on latents; give --inputs=images"),
        ("anchor", (), r"image encoder.*\(--inputs=images\)"),
        ("anchor", ("image_encoder",), r"image_weight.*\(--inputs=images\)"),
    ],
)
def test_latents_are_planned_where_they_can_be_trained_on(stage, freeze, reason):
    values = tiny.config().to_dict()
    values["anchor"]["train"]["freeze"] = freeze
    values["anchor"]["loss"]["image_weight"] = 2.0
    with pytest.raises(ValueError, match=reason):
        plan.make_plan(stages.parse_config(values), stage, jax.devices()[:1], "latents")


@pytest.mark.parametrize(("topology", "devices"), [(None, None), ("v5e:1x1", 1)])
def test_a_plan_is_for_a_topology_or_for_devices(topology, devices):
    with pytest.raises(ValueError, match="give either --topology or --devices"):
        plan.find_devices(topology, devices)


def test_a_slice_has_at_least_one_chip_per_side():
    with pytest.raises(ValueError, match=r"no topology 'v5e:0x4' .*give one like v5e:16x16"):
        plan.tpu_devices("v5e:0x4")


def test_products_and_convolutions_are_counted():
    def compute(x, kernel):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.lax.scan(lambda carry, _: (carry @ jnp.ones((5, 5)), None), y, length=3)[0]

    counted = costs.count_flops(jax.make_jaxpr(compute)(np.ones((2, 6, 6, 4)), np.ones((3, 3, 4, 5))))
    assert counted == 2 * (2 * 4 * 4 * 5) * (9 * 4) + 3 * 2 * (2 * 4 * 4 * 5) * 5


def test_flops_of_a_gradient_are_those_that_the_compiler_counts():
    x, kernel = np.ones((2, 8, 8, 4), np.float32), np.ones((3, 3, 4, 5), np.float32)

    def loss(kernel, x):
        return (
            jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).sum()
            ** 2
        )

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(kernel, x)
    assert costs.count_flops(traced.jaxpr) == pytest.approx(3 * 2 * (2 * 4 * 4 * 5) * 36, rel=0.3)


def test_chips_are_known_by_the_start_of_their_name():
    assert costs.chip("TPU v5 lite").memory == 16e9 and costs.chip("TPU v5p") is not None and costs.chip("cpu") is None
