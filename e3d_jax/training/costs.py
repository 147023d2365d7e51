"""What a computation costs, in FLOPs and exchanged bytes, and what chips can do.

FLOPs are counted on the traced program: XLA's own count includes the body of a loop only once, and no fused attention.
"""

import collections
import dataclasses
import math
import re
from typing import Any

import jax
from jax.extend import core

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
TYPE_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of an accelerator.

    Attributes:
      flops: dense bfloat16 FLOPs per second.
      memory: bytes.
      bandwidth: of the memory, bytes per second.
      link: bytes per second that leave the chip for others of its pod or host, over all links together.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float


# By the start of JAX's device_kind, longer names first; values from the vendors' data sheets.
CHIPS = {
    "TPU v6 lite": Chip(918e12, 32e9, 1640e9, 400e9),
    "TPU v5 lite": Chip(197e12, 16e9, 819e9, 200e9),
    "TPU v5": Chip(459e12, 95e9, 2765e9, 600e9),
    "TPU v4": Chip(275e12, 32e9, 1228e9, 300e9),
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9),
    "NVIDIA H100": Chip(989e12, 80e9, 3350e9, 450e9),
    "NVIDIA A100": Chip(312e12, 80e9, 2039e9, 300e9),
}


def chip(device_kind: str) -> Chip | None:
    """Return the figures of a device; None if it is not listed."""
    return next((figures for name, figures in CHIPS.items() if device_kind.startswith(name)), None)


def count_flops(jaxpr: Any) -> float:
    """Return the FLOPs of matrix products, convolutions and fused attention in a (closed) jaxpr.

    A multiply-add is two FLOPs. What a rematerialized block computes twice is counted twice; the gradients of its
    parameters count even if nothing uses them.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif "dot_product_attention" in name and not any(_inner(params)):
            query, key = equation.invars[0].aval.shape, equation.invars[1].aval.shape
            # Two products of [n e] and [e m] forward; five backward, one of which recomputes the logits.
            total += (10 if "bwd" in name else 4) * math.prod(query) * key[1]
        elif name == "cond":
            # One branch is taken; branches by platform are equivalent.
            total += max(count_flops(branch) for branch in params["branches"])
        else:
            total += params.get("length", 1) * sum(count_flops(inner) for inner in _inner(params))
    return total


def array_bytes(shapes: str) -> list[int]:
    """Return the bytes of each array whose shape stands in a part of a compiled program's text."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    return [TYPE_BYTES.get(kind, 4) * math.prod(int(n) for n in sides.split(",") if n) for kind, sides in found]


def collectives(program: str) -> dict[str, tuple[int, float]]:
    """Return how often each collective occurs in a compiled program's text, and the bytes of its results per device."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    pattern = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
    for line in program.splitlines():
        if match := pattern.search(line):
            sizes = array_bytes(match[1])
            # An asynchronous start also returns its operand.
            found[match[2]].append(max(sizes, default=0) if match[3] else sum(sizes))
    return {name: (len(sizes), float(sum(sizes))) for name, sizes in sorted(found.items())}


def _convolution(equation: Any) -> float:
    """Return the FLOPs of a convolution: each output takes a window of the input; inserted zeros do not count."""
    numbers, window = equation.params["dimension_numbers"], equation.invars[1].aval.shape
    out = equation.outvars[0].aval.size
    kernel = math.prod(window[axis] for axis in numbers.rhs_spec[1:])
    return 2 * out * kernel / math.prod(equation.params["lhs_dilation"]) / math.prod(equation.params["rhs_dilation"])


def _inner(params: Any) -> list[Any]:
    """Return the jaxprs among an equation's parameters."""
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr))
    return [leaf for leaf in leaves if isinstance(leaf, core.Jaxpr | core.ClosedJaxpr)]
