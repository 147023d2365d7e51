"""Plan a run without its hardware: compile the real train step for a TPU topology, or for devices at hand.

    e3d plan --config=envision3d --stage=anchor --topology=v5e:16x16 [--inputs=latents|images] [--json=FILE]

Prints the memory per device by kind, FLOPs per step, collectives with their bytes, a lower bound of the step's time,
and whether it fits; if it does not, tries settings that need less memory. TPU topologies need libtpu (extra
[tpu-plan]) but no TPU. --devices=N plans for N devices of this machine instead.
"""

from e3d_jax.cli.flags import Flags, no_arguments


def define(flags: Flags) -> None:
    """Define the flags."""
    flags.string("stage", None, "The stage to train.", required=True)
    flags.string("topology", None, "A TPU slice, such as v5e:16x16, v5p:4x4x4 or v6e:16x16.")
    flags.integer("devices", None, "Number of devices of this machine to plan for instead.", at_least=1)
    flags.choice("inputs", "latents", ["latents", "images"], "What the records hold.")
    flags.string("json", None, "File to also write the last plan to, with the settings that it changes.")
    flags.config("envision3d")


def run(flags: Flags, arguments: list[str]) -> None:
    """Print the plan."""
    from e3d_jax import distributed
    from e3d_jax.training import plan

    no_arguments(arguments)
    config = flags.parsed_config()
    distributed.stable_cache_keys()
    devices = plan.find_devices(flags.topology, flags.devices)
    found, changes = plan.search(config, flags.stage, devices, flags.inputs)
    if flags.json and found:
        plan.write_json(flags.json, found, changes)
