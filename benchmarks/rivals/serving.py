"""What both frameworks share: the cases, and how a child process obeys ``benchmarks/diffusion.py``.

A child prepares one case and prints a line of JSON with what it learned; for every number n that then comes on its
standard input it runs the case n times and prints how many seconds a run took. Runs are given to the device without
waiting for the one before, as a sampler gives its steps and a loop its batches.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags
from ml_collections import config_flags

from e3d_jax import cameras
from e3d_jax.sampling import interpolation

CASES = {
    "anchor": "anchor U-Net, one call for --objects",
    "interpolation": "interpolation U-Net, one call for the four windows of --objects",
    "image_encoder": "image encoder of the interpolation, the windows of --objects",
    "encode": "autoencoder, input pair and the eight anchors to latents",
    "decode": "autoencoder, anchors of both domains from latents",
    "decode_windows": "autoencoder of the interpolation, what of four windows is decoded",
    "anchor_train": "train step of the anchor stage, --train_objects",
    "interpolation_train": "train step of the interpolation stage, --train_windows",
}
NUM_WINDOWS = len(cameras.WINDOWS)
ENCODED = 2 + cameras.NUM_ANCHORS


def decoded_frames(autoencoder: Mapping[str, Any]) -> int:
    """How many frames of a window are decoded: all where the decoder sees them together, else those that are new."""
    return cameras.WINDOW_FRAMES if autoencoder.get("temporal_decoder") else len(interpolation.NEW_FRAMES)


def define_flags() -> None:
    """The flags of a child, which ``diffusion.py`` takes and passes on."""
    config_flags.DEFINE_config_file("config", "configs/envision3d.py", "The system whose sizes are timed.")
    flags.DEFINE_integer("objects", 1, "Objects in a call.", lower_bound=1)
    flags.DEFINE_integer("train_objects", 2, "Objects in a train step.", lower_bound=1)
    flags.DEFINE_integer("train_windows", 8, "Windows in a train step.", lower_bound=1)


def serve(
    prepare: Callable[[str], tuple[Callable[[], Any], dict[str, Any], Callable[[], dict[str, Any]]]],
    wait: Callable[[Any], object],
) -> None:
    """Obeys until standard input ends.

    Args:
      prepare: from the name of a case to a function that starts a run of it, what is known of it beforehand, and a
        function that tells what is known after it ran.
      wait: for the end of all runs, given the result of the last.
    """
    run, facts, after = prepare(flags.FLAGS.case)
    # As in the training loop: what tracing left lives on, and is not looked through for garbage while runs are timed.
    gc.collect()
    gc.freeze()
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(count := int(line)):
            result = run()
        wait(result)
        print(json.dumps({"seconds": (time.perf_counter() - start) / count, **after()}), flush=True)
