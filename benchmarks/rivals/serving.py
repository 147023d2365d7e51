"""Shared by both frameworks: the cases, and the protocol between a child process and ``benchmarks/diffusion.py``.

A child prepares one case and prints a line of JSON with facts about it. For every number n on its standard input it
then runs the case n times and prints the seconds per run. Runs are dispatched without waiting for the previous one, as
the steps of a sampler and of a training loop are.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags

from e3d_jax import config as config_lib

CASES = {
    "anchor": "anchor U-Net, one call for --objects",
    "interpolation": "interpolation U-Net, one call for the windows of --objects",
    "image_encoder": "image encoder of the interpolation, the windows of --objects",
    "encode": "autoencoder, input pair and the eight anchors to latents",
    "decode": "autoencoder, anchors of both domains from latents",
    "decode_windows": "autoencoder of the interpolation, the decoded frames of the windows",
    "anchor_train": "train step of the anchor stage, --train_objects",
    "interpolation_train": "train step of the interpolation stage, --train_windows",
}


def decoded_frames(config: config_lib.SystemConfig) -> int:
    """Return how many frames of a window are decoded: all if the decoder sees them together, else the new ones."""
    layout = config.layout
    return layout.window_frames if config.autoencoder("interpolation").temporal_decoder else len(layout.window_new)


def define_flags() -> None:
    """Define the flags of a child, which ``diffusion.py`` takes and passes on."""
    config_flags.DEFINE_config_file("config", "configs/envision3d.py", "The system whose sizes are timed.")
    flags.DEFINE_integer("objects", 1, "Objects per call.", lower_bound=1)
    flags.DEFINE_integer("train_objects", 2, "Objects per train step.", lower_bound=1)
    flags.DEFINE_integer("train_windows", 8, "Windows per train step.", lower_bound=1)


def serve(
    prepare: Callable[[str], tuple[Callable[[], Any], dict[str, Any], Callable[[], dict[str, Any]]]],
    wait: Callable[[Any], object],
) -> None:
    """Run the case on request until standard input ends.

    Args:
      prepare: from the name of a case to a function that starts a run of it, facts known beforehand, and a function
        that returns facts known after runs.
      wait: waits for the end of all runs, given the result of the last.
    """
    run, facts, after = prepare(flags.FLAGS.case)
    # As in the training loop: objects left by tracing stay alive and are excluded from garbage collection.
    gc.collect()
    gc.freeze()
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(count := int(line)):
            result = run()
        wait(result)
        print(json.dumps({"seconds": (time.perf_counter() - start) / count, **after()}), flush=True)
