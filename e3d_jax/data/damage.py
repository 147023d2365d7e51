"""Records that cannot be used: named by folder, shard and number, and replaced if that is wanted."""

import dataclasses
import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from e3d_jax.data import records as records_lib

# Records that are tried in the place of one that cannot be used.
TRIES = 100


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Records of shards with their numbers, read one by one; what cannot be read comes as an exception.

    Attributes:
      records: all of the shards, by number.
    """

    records: Any

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> tuple[int, Any]:
        try:
            return int(index), self.records[int(index)]
        except (RuntimeError, ValueError, OSError) as error:  # What ArrayRecord raises.
            return int(index), error


@dataclasses.dataclass(frozen=True)
class ExampleMaker:
    """Makes the examples of a dataset; what cannot be used is replaced by the record after it, and reported.

    Attributes:
      folder: of the dataset.
      shards: its files.
      records: of the shards, by number.
      source: makes the examples (:class:`e3d_jax.stages.base.Source`).
      config: of the system.
    """

    folder: str
    shards: Sequence[str]
    records: Numbered
    source: Any
    config: Any

    def __call__(self, numbered: tuple[int, Any], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Any]:
        """Return the record's id, what could not be used in its place (JSON), and the example."""
        bad: list[Any] = []
        for _ in range(min(TRIES, len(self.records))):
            index, data = numbered
            try:
                if isinstance(data, Exception):
                    raise data
                record = self.source.unpack(data)
                if self.config is not None:
                    self.source.check(record, self.config)
                example = self.source.example(record, rng, self.config)
                return np.array(record.id), np.array(json.dumps(bad)), example
            except Exception as error:  # Decoders of damaged bytes raise anything.
                bad.append([self.folder, index, describe(self.folder, self.shards, index, data, error)])
            numbered = self.records[(index + 1) % len(self.records)]
        raise ValueError(f"{bad[0][2]}; neither can the {len(bad) - 1} records after it")


class Batches(Iterator):
    """Batches of examples that counts the records that could not be used.

    Args:
      batches: of what :class:`ExampleMaker` returns.
      max_bad: how many different records may be bad.
    """

    def __init__(self, batches: Any, max_bad: int):
        self._batches, self._max_bad, self._bad = batches, max_bad, set[tuple[str, int]]()

    @property
    def num_bad(self) -> int:
        """How many different records could not be used so far."""
        return len(self._bad)

    def __next__(self) -> tuple[np.ndarray, Any]:
        ids, reports, batch = next(self._batches)
        for folder, index, message in (bad for report in reports.tolist() for bad in json.loads(report)):
            if (folder, index) in self._bad:
                continue
            self._bad.add((folder, index))
            if self.num_bad > self._max_bad:
                allowed = f"more than max_bad_records, {self._max_bad}" if self._max_bad else "see max_bad_records"
                raise ValueError(f"{message}; write it again, or skip such records ({allowed})")
            warnings.warn(f"{message}; skipped ({self.num_bad} of at most {self._max_bad})", stacklevel=2)
        return ids, batch

    def close(self) -> None:
        """End the workers."""
        self._batches.close()


def describe(folder: str, shards: Sequence[str], index: int, data: Any, error: Exception) -> str:
    """Return which record cannot be used and why.

    Args:
      folder: of the dataset.
      shards: its files.
      index: number of the record in the dataset.
      data: its bytes, if they can be read.
      error: what is wrong.
    """
    name, number = locate(shards, index)
    try:
        known = f" ({records_lib.fields_of(data)['id']})"
    except (ValueError, KeyError, TypeError):
        known = ""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{folder}: record {number} of {name}{known} cannot be used: {reason}"


def locate(shards: Sequence[str], index: int) -> tuple[str, int]:
    """Return the file name of the shard that holds a record, and the record's number in it, from 0 on."""
    for shard in shards:
        reader = array_record_module.ArrayRecordReader(shard)
        count = reader.num_records()
        reader.close()
        if index < count:
            return shard.rpartition("/")[2], index
        index -= count
    raise IndexError(index)
