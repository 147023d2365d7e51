"""What a step needs, found without running it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import envision3d
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
    config = tiny.config() | {"mesh": {"data": 2, "fsdp": 2, "tensor": 1}}
    return plan.make_plan(config, "normals", jax.devices(), "pictures")


def test_a_plan_counts_what_a_device_stores(planned):
    assert 1.9 < planned.memory["optimiser"] / planned.memory["parameters"] < 2.1
    assert planned.memory["average"] == planned.memory["parameters"]
    assert planned.memory["batch"] == 2 * 32 * 32 * 4 + 4  # one example: two pictures and an angle


def test_a_plan_finds_the_exchange_of_parameters(planned):
    assert planned.collectives["all-gather"][0] > 0
    assert planned.operations > 0 and planned.fits is None


def test_a_plan_as_text_names_every_kind_of_memory(planned):
    text = plan.report(planned)
    assert all(kind in text for kind in planned.memory)


def test_settings_that_need_less_memory_divide_the_batch():
    config = envision3d.get_config().to_dict()
    tried = [(name, changed["anchor"]["train"]) for name, changed in plan.alternatives(config, "anchor", 256)]
    assert tried[0][0] == "mesh.data=-1 mesh.fsdp=64"
    assert [settings["accumulate"] for _, settings in tried if settings["accumulate"] > 1] == [2]


@pytest.mark.parametrize("stage", loader.EXAMPLES)
def test_planned_examples_are_those_of_the_loader(ball_folder, stage):
    batch = next(loader.make_loader({str(ball_folder): 1.0}, stage, batch_size=1, seed=0))
    config = tiny.config()
    planned = plan.example_shapes(config, stage, "pictures")
    assert {name: x.shape[1:] for name, x in batch.items() if name != "id"} == {k: v[0] for k, v in planned.items()}


@pytest.mark.parametrize(
    ("stage", "freeze", "reason"),
    [
        ("normals", (), "the normals stage trains on pictures"),
        ("anchor", (), "trains its image encoder"),
        ("anchor", ("image_encoder",), "encoded records hold no pictures"),
    ],
)
def test_latents_are_planned_where_they_can_be_trained_on(stage, freeze, reason):
    config = tiny.config()
    config["anchor"]["train"]["freeze"] = freeze
    config["anchor"]["loss"]["picture_weight"] = 2.0
    with pytest.raises(ValueError, match=reason):
        plan.make_plan(config, stage, jax.devices()[:1], "latents")


def test_a_slice_has_at_least_one_chip_a_side():
    with pytest.raises(ValueError, match=r"no topology 'v5e:0x4' .*give one like v5e:16x16"):
        plan.tpu_devices("v5e:0x4")


def test_products_and_convolutions_are_counted():
    def compute(x, kernel):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.lax.scan(lambda carry, _: (carry @ jnp.ones((5, 5)), None), y, length=3)[0]

    counted = costs.count(jax.make_jaxpr(compute)(np.ones((2, 6, 6, 4)), np.ones((3, 3, 4, 5))))
    assert counted == 2 * (2 * 4 * 4 * 5) * (9 * 4) + 3 * 2 * (2 * 4 * 4 * 5) * 5


def test_operations_of_a_gradient_are_those_that_the_compiler_counts():
    x, kernel = np.ones((2, 8, 8, 4), np.float32), np.ones((3, 3, 4, 5), np.float32)

    def loss(kernel, x):
        return (
            jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).sum()
            ** 2
        )

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(kernel, x)
    assert costs.count(traced.jaxpr) == pytest.approx(3 * 2 * (2 * 4 * 4 * 5) * 36, rel=0.3)


def test_chips_are_known_by_the_start_of_their_name():
    assert costs.chip("TPU v5 lite").memory == 16e9 and costs.chip("TPU v5p") is not None and costs.chip("cpu") is None
