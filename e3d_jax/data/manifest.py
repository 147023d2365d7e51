"""What is known of a dataset: a receipt of each shard, and the manifest that lists them.

A job writes a receipt, ``receipts/SHARD.json``, just before the shard gets its name, and ``manifest.json`` at its end:

    shards        map from the file name of a shard to what :class:`Receipt` says of it, without the lists of items
    quarantine    map from the items that could not be made to the reasons

Several machines may write to one folder: the last to end lists all that is there.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import e3d_jax
from e3d_jax import files

NAME = "manifest.json"
RECEIPTS = "receipts"


@dataclasses.dataclass(frozen=True)
class Receipt:
    """How a shard was made.

    Attributes:
      shard: its file name; there is no file if it would hold no record.
      records: their number.
      sha256: of all records, each after its length (8 bytes, the lowest first); equal for equal records.
      flawed: number of records that lack something.
      seed: of the job's randomness, if there is one.
      seconds: from the first item to the last record.
      ended: when, in seconds since 1970.
      version: of the code.
      items: names of all items, if the job has names for them.
      quarantine: reasons by the names of items that could not be made.
    """

    shard: str
    records: int
    sha256: str
    flawed: int
    seed: int | None
    seconds: float
    ended: float
    version: str
    items: Sequence[str]
    quarantine: Mapping[str, str]

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of items that were made, skipped, and made but flawed."""
        return {"made": self.records, "skipped": len(self.quarantine), "flawed": self.flawed}


class Register:
    """Counts and hashes the records of a shard while they are written."""

    def __init__(self):
        self._start, self._digest = time.monotonic(), hashlib.sha256()
        self.records = self.flawed = 0
        self.quarantine: dict[str, str] = {}

    def add(self, record: bytes) -> None:
        """Count a record."""
        self._digest.update(len(record).to_bytes(8, "little"))
        self._digest.update(record)
        self.records += 1

    def receipt(self, shard: str, seed: int | None, items: Sequence[str]) -> Receipt:
        """Return the receipt of the shard."""
        return Receipt(
            shard=shard,
            records=self.records,
            sha256=self._digest.hexdigest(),
            flawed=self.flawed,
            seed=seed,
            seconds=round(time.monotonic() - self._start, 3),
            ended=time.time(),
            version=e3d_jax.__version__,
            items=list(items),
            quarantine=self.quarantine,
        )


def write_receipt(folder: str | os.PathLike, receipt: Receipt) -> None:
    """Write the receipt of a shard, over any older one.

    Raises:
      OSError: it cannot be written.
    """
    files.make_folder(files.join(folder, RECEIPTS))
    path = files.join(folder, RECEIPTS, f"{receipt.shard}.json")
    files.write_atomically(path, json.dumps(dataclasses.asdict(receipt)).encode())


def read_receipts(folder: str | os.PathLike) -> list[Receipt]:
    """Return the receipts of a dataset, the oldest first.

    Raises:
      OSError: one cannot be read.
      ValueError: one is damaged.
    """
    return _read_receipts(_list_receipts(folder))


def _list_receipts(folder: str | os.PathLike) -> list[str]:
    return files.glob(files.join(folder, RECEIPTS), "*.json")


def _read_receipts(paths: list[str]) -> list[Receipt]:
    def read(path: str) -> Receipt:
        try:
            return Receipt(**json.loads(files.read(path)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and the shard that it is of") from error

    with concurrent.futures.ThreadPoolExecutor(32) as pool:  # Each waits for its store.
        return sorted(pool.map(read, paths), key=lambda receipt: receipt.ended)


def write(folder: str | os.PathLike) -> None:
    """Write the manifest of all shards that a dataset has receipts of; nothing if there are none.

    Raises:
      OSError, ValueError: see :func:`read_receipts`; or it cannot be written.
    """
    listed: list[str] = []
    # Again if another machine has ended meanwhile, whose manifest this one may have replaced.
    while (paths := _list_receipts(folder)) != listed:
        listed, shards, quarantine = paths, {}, dict[str, str]()
        for receipt in _read_receipts(paths):
            fields = dataclasses.asdict(receipt)
            shards[fields.pop("shard")] = fields
            for item in fields.pop("items"):
                quarantine.pop(item, None)  # It has been tried again.
            quarantine.update(fields.pop("quarantine"))
        text = json.dumps({"shards": dict(sorted(shards.items())), "quarantine": quarantine}, indent=1)
        files.write_atomically(files.join(folder, NAME), text.encode())


def read(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return the manifest of a dataset, if it has one.

    Raises:
      OSError: it cannot be read.
      ValueError: it is damaged.
    """
    path = files.join(folder, NAME)
    try:
        manifest = json.loads(files.read(path))
        return {"shards": dict(manifest["shards"]), "quarantine": dict(manifest["quarantine"])}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, or run the command that made it again") from error


def expected(folder: str | os.PathLike, shards: Sequence[str]) -> dict[str, int]:
    """Return the numbers of records that shards should have, by path, as far as the manifest lists them.

    Args:
      folder: of the dataset.
      shards: the paths that are there.

    Raises:
      OSError, ValueError: see :func:`read`; or the manifest lists a shard that is not there.
    """
    manifest = read(folder)
    listed = manifest["shards"] if manifest else {}
    there = {pathlib.PurePath(path).name: path for path in shards}
    if missing := [name for name, fields in listed.items() if fields["records"] and name not in there]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of the shards in its {NAME}, such as {missing[0]}; copy them, run the "
            f"command that made them again, or delete {NAME} and {RECEIPTS}/"
        )
    return {there[name]: fields["records"] for name, fields in listed.items() if name in there}
