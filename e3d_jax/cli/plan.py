"""Plan a run without its hardware: compile the real train step for a TPU topology, or for devices at hand.

    e3d plan --config=envision3d --stage=anchor --topology=v5e:16x16 [--inputs=latents|images] [--json=FILE]

Prints the memory per device by kind, FLOPs per step, collectives with their bytes, a lower bound of the step's time,
and whether it fits; if it does not, tries settings that need less memory. TPU topologies need libtpu (extra
[tpu-plan]) but no TPU. --devices=N plans for N devices of this machine instead.
"""

from e3d_jax.cli.flags import Command, Flags, no_arguments


def define(flags: Flags) -> None:
    """Define the flags."""
    flags.string("stage", None, "The stage to train.", required=True)
    flags.string("topology", None, "A TPU slice, such as v5e:16x16, v5p:4x4x4 or v6e:16x16.")
    flags.integer("devices", None, "Number of devices of this machine to plan for instead.", at_least=1)
    flags.number("memory", None, "GB per device, if it is not that of the devices planned for; 24 for a card of 24 GB.")
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
    found, changes = plan.search(config, flags.stage, devices, flags.inputs, flags.memory and 1e9 * flags.memory)
    if flags.json and found:
        plan.write_json(flags.json, found, changes)


def define_sampling(flags: Flags) -> None:
    """Define the flags of ``sampling``."""
    flags.string("stage", None, "The stage that samples.", required=True)
    flags.string("topology", None, "A TPU chip, such as v5e:1x1 or v6e:1x1.")
    flags.integer("devices", None, "1 to plan for a device of this machine instead.", at_least=1, at_most=1)
    flags.string("batches", "1,2,4,8", "Numbers of examples at a time, with commas between.")
    flags.number("memory", None, "GB of the device, if it is not that of the device planned for.")
    flags.number("price", None, "Price of an hour of the device, in any currency.")
    flags.config("envision3d")


def run_sampling(flags: Flags, arguments: list[str]) -> None:
    """Print the table of sampling.

    Raises:
      ValueError: the batches are not numbers.
    """
    from e3d_jax.training import plan, plan_sampling

    no_arguments(arguments)
    config, batches = flags.parsed_config(), flags.batches.split(",")
    if not all(batch.isdecimal() and int(batch) for batch in batches):
        raise ValueError(f"--batches is {flags.batches!r}; expected numbers from 1 on, as in 1,2,4")
    (device, *_) = plan.find_devices(flags.topology, flags.devices)
    memory = flags.memory and 1e9 * flags.memory
    sizes = [int(batch) for batch in batches]
    print(plan_sampling.table(config, flags.stage, device, sizes, capacity=memory, price=flags.price))


def define_data(flags: Flags) -> None:
    """Define the flags of ``data``."""
    flags.string("stage", None, "The stage to train.", required=True)
    flags.source("data", None, "Folder of some records of the kind to make.", required=True)
    flags.number("epochs", 1.0, "How often the run sees each object.")
    flags.number("price", None, "Price of an hour of a machine like the one that made the records, in any currency.")
    flags.number("storage_price", None, "Price of a GB for a month, in any currency.")
    flags.config("envision3d")


def run_data(flags: Flags, arguments: list[str]) -> None:
    """Print what the data of a run takes."""
    from e3d_jax.training import plan_data

    no_arguments(arguments)
    prices = flags.price, flags.storage_price
    print(plan_data.report(flags.parsed_config(), flags.stage, flags.data, flags.epochs, *prices))


SUBCOMMANDS = {
    "sampling": Command(
        define_sampling,
        run_sampling,
        "Memory and time of sampling by batch, without the hardware.\n\n"
        "e3d plan sampling --config=envision3d --stage=anchor --topology=v6e:1x1 [--batches=1,2,4,8] [--price=2.7]\n\n"
        "Compiles the real sampler, with the encoders of the condition and the decoder. Times are lower bounds, from\n"
        "published figures of the device. With --price, the least cost of the views of 1000 objects.",
    ),
    "data": Command(
        define_data,
        run_data,
        "Records, storage, and time that the data of a training run takes.\n\n"
        "e3d plan data --config=envision3d --stage=anchor --data=SAMPLE [--epochs=1] [--price=1.2]\n"
        "    [--storage_price=0.02]\n\n"
        "Extrapolates from a small dataset of the same kind, which has the size and the time of a record.",
    ),
}
