"""Prefixes that programs put before the names of all tensors when they save a network.

``torch.compile`` adds ``_orig_mod.``, data parallelism ``module.``, and trainers ``ema.`` or the name of the network.
"""

import collections
import re
import warnings
from collections.abc import Collection, Mapping
from typing import TypeVar

Value = TypeVar("Value")
EMA = re.compile(r"(^|[._-])(?<!non[._-])ema([._-]|$)")


def strip(tensors: Mapping[str, Value], expected: Collection[str]) -> dict[str, Value]:
    """Return the tensors without the prefix that their names have in common.

    If a file holds the network twice, the EMA is used, with a warning; tensors of the other copy are dropped. Tensors
    outside of all copies keep their names.

    Args:
      tensors: by name.
      expected: names of the network's tensors, of which some may be missing.

    Raises:
      ValueError: the file holds several copies of the network and none of them is the EMA.
    """
    copies = _copies(tensors, set(expected))
    if copies <= {""}:
        return dict(tensors)
    averaged = [prefix for prefix in sorted(copies) if EMA.search(prefix)]
    chosen = "" if "" in copies and not averaged else sorted(copies)[0]
    if len(copies) > 1:
        if len(averaged) == 1:
            chosen = averaged[0]
            warnings.warn(f"the weights hold the network {len(copies)} times; using {chosen}*, the EMA", stacklevel=2)
        elif "" not in copies:
            listed = ", ".join(f"{prefix}*" for prefix in sorted(copies))
            raise ValueError(f"the weights hold the network {len(copies)} times: {listed}; keep one of them")
    others = tuple(prefix for prefix in copies - {chosen, ""})
    kept = {}
    for name, tensor in tensors.items():
        if chosen and name.startswith(chosen):
            kept[name[len(chosen) :]] = tensor
        elif not (others and name.startswith(others)) and not (chosen and "" in copies and name in expected):
            kept[name] = tensor
    return kept


def _copies(tensors: Collection[str], expected: set[str]) -> set[str]:
    """Return the prefixes under which at least half as many of the expected names are found as under the best one."""
    counts: collections.Counter[str] = collections.Counter()
    for name in tensors:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        counts.update(name[:start] for start in starts if name[start:] in expected)
    most = max(counts.values(), default=0)
    return {prefix for prefix, count in counts.items() if 2 * count > most}
