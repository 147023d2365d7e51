"""What sampling needs, found without running it."""

import jax
import pytest

from e3d_jax import stages
from e3d_jax.training import costs, plan, plan_sampling
from tests import tiny, toy


@pytest.fixture(autouse=True)
def _stages(monkeypatch):
    toy.register(monkeypatch)


def _plan(batch):
    return plan_sampling.make_plan(toy.config(), "user", jax.devices()[0], batch)


def test_parameters_count_once_and_images_per_example():
    one, four = _plan(1), _plan(4)
    # Two networks of two layers of 4 x 4 with biases.
    assert one.memory["parameters"] == four.memory["parameters"] == 2 * 2 * (16 + 4) * 4
    assert one.memory["images"] == 2 * 3 * 4 * 3 * 4 == four.memory["images"] / 4
    assert (one.capacity, one.seconds) == (None, {})


def test_a_stage_that_shows_nothing_cannot_be_planned():
    with pytest.raises(ValueError, match=r"the toy stage samples no images; give --stage=.*user"):
        plan_sampling.make_plan(toy.config(), "toy", jax.devices()[0], 1)


@pytest.fixture
def table(monkeypatch):
    """The table of a stage that takes 2 s for a batch of 4 and does not fit with 16."""

    def make_plan(config, stage, device, batch):
        if batch == 16:
            raise plan.TooLargeError
        return plan.Plan("", {"activations": 1e9 * batch}, 1e12 * batch, {}, {"compute": batch / 2}, 6e9)

    monkeypatch.setattr(plan_sampling, "make_plan", make_plan)

    def table(stage="user", **rest):
        return plan_sampling.table(toy.config(), stage, jax.devices()[0], [4, 8, 16, 32], **rest).splitlines()

    return table


def test_a_table_has_a_row_per_batch_until_one_does_not_compile(table):
    rows = [row.split() for row in table()[2:]]
    assert rows[0] == ["4", "4.00", "fits", "4.0", ">", "2.000", ">", "0.139", "h"]
    assert [row[:3] for row in rows[1:]] == [["8", "8.00", "too"], ["16", "does", "not"]]


def test_a_price_gives_the_cost_of_1000_objects(table):
    assert table(price=7.2)[2].endswith("> 0.139 h, 1.00")


def test_another_memory_decides_what_fits(table):
    assert [row.split()[2] for row in table(capacity=10e9)[2:4]] == ["fits", "fits"]


def test_an_object_takes_all_windows_of_the_ring(ball_folder):
    config = tiny.system(32)
    assert stages.get("interpolation").examples_per_object(config) == len(config.layout.windows) == 4
    assert stages.get("anchor").examples_per_object(config) == 1


@pytest.mark.slow
def test_a_real_sampler_compiles_without_weights():
    found = plan_sampling.make_plan(tiny.system(32), "anchor", jax.devices()[0], 1)
    assert found.flops > 0 and found.memory["activations"] > 0
    assert costs.chip(jax.devices()[0].device_kind) is None and found.seconds == {}
