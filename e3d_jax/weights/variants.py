"""Which safetensors files of a component folder hold its weights.

A folder may hold several variants of the same weights (``diffusion_pytorch_model.fp16.safetensors``), each whole or in
shards (``-00001-of-00002``), with an index that names the shards or without.
"""

import collections
import json
import re
from collections.abc import Mapping
from pathlib import Path

SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
NOT_EMA = re.compile(r"non[-_]?ema")
# The names that diffusers and transformers give to weights.
PLAIN = ("diffusion_pytorch_model", "model")


def find_files(folder: Path | str) -> list[Path]:
    """Return the safetensors files of a component folder: the shards that an index names, or one file.

    Of several variants, weights that are not the EMA are left aside; then the variant without a suffix is used.

    Raises:
      OSError: there is none, or a shard is missing.
      ValueError: there are only pickles, the index is damaged, or there are several variants and none is plain.
    """
    folder = Path(folder)
    variants: dict[str, list[Path]] = {}
    found: dict[str, list[Path]] = collections.defaultdict(list)
    for path in sorted(folder.glob("*.safetensors")):
        found[_variant(path.name)].append(path)
    for name, paths in found.items():
        # A whole file beside shards without an index is the one that diffusers reads.
        variants[name] = [path for path in paths if not SHARD.search(path.name)] or paths
    indexed = {_variant(index.name): _indexed(index) for index in sorted(folder.glob("*.safetensors.index*.json"))}
    listed = {path for paths in indexed.values() for path in paths}
    variants = {name: paths for name, paths in variants.items() if not listed.issuperset(paths)} | indexed
    if not variants:
        raise _no_files(folder)
    files = variants[_choose(folder, variants)]
    _check_complete(files)
    return files


def _variant(name: str) -> str:
    """Return the name of a variant: that of its file without the parts that shards and indices add."""
    parts = SHARD.sub("", name).split(".")
    return ".".join(part for part in parts if part not in ("safetensors", "index", "json"))


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [index.parent / str(name) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of safetensors files ({error}); copy it again") from error


def _choose(folder: Path, variants: Mapping[str, list[Path]]) -> str:
    ema = [name for name in variants if not NOT_EMA.search(name)] or list(variants)
    plain = [name for name in ema if name in PLAIN]
    marked = [name for name in ema if re.search(r"(^|[._-])ema([._-]|$)", name)]
    for names in (ema, plain, marked):
        if len(names) == 1:
            return names[0]
    listed = ", ".join(variants[name][0].name for name in ema)
    raise ValueError(f"{folder} holds several variants of its weights: {listed}; keep one of them")


def _check_complete(files: list[Path]) -> None:
    """Refuse weights of which a shard is missing.

    Raises:
      FileNotFoundError: names the missing shards.
      ValueError: the shards belong to several splits.
    """
    folder, names = files[0].parent, [path.name for path in files]
    numbered = [match for name in names if (match := SHARD.search(name))]
    totals = {match.group(2) for match in numbered}
    if len(totals) > 1:
        raise ValueError(f"{folder} holds the shards of several splits: {shorten(names)}; keep those of one")
    for match in numbered[:1]:
        shards = [f"-{number:05d}-of-{match.group(2)}" for number in range(1, int(match.group(2)) + 1)]
        names += [SHARD.sub(shard, match.string) for shard in shards]
    if missing := sorted({name for name in names if not (folder / name).exists()}):
        raise FileNotFoundError(f"{folder} lacks {shorten(missing)}; copy the folder again")


def _no_files(folder: Path) -> Exception:
    pickles = sorted(file.name for kind in ("bin", "ckpt", "pt", "pth") for file in folder.glob(f"*.{kind}"))
    if pickles:
        return ValueError(
            f"{folder} holds only pickles ({shorten(pickles)}), which can run code when they are read; "
            "give the same weights as safetensors"
        )
    return FileNotFoundError(f"no *.safetensors in {folder}; give a component folder in diffusers' format")


def shorten(names: list[str], separator: str = ", ", limit: int = 10) -> str:
    """Return names as one text; of a long list, the first ones and how many more there are."""
    more = f"{separator}and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more
