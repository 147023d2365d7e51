"""What clients send, and what they get."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

MAX_PICTURES = 4
MAX_BYTES = 25_000_000  # of a picture

Quality = Literal["weights", "fast", "standard", "best"]
State = Literal["waiting", "running", "done", "failed", "cancelled"]


class Picture(pydantic.BaseModel):
    """A picture of the object.

    Attributes:
      data: the file: PNG, JPEG, WebP, ...; base64 in JSON.
      azimuth: where it was taken from, in degrees to the right of the first picture; or a direction.
    """

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    data: pydantic.Base64Bytes
    azimuth: float | Literal["front", "right", "back", "left"] = 0.0


class Options(pydantic.BaseModel):
    """How a mesh is made."""

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    seed: int = pydantic.Field(0, ge=0, lt=2**32, description="Seed of all randomness.")
    steps: int | None = pydantic.Field(
        None, ge=1, le=1000, description="Sampling steps of both diffusion stages; those of the weights by default."
    )
    quality: Quality = pydantic.Field("weights", description="Speed against detail of the mesh.")
    elevation: float | None = pydantic.Field(
        None, ge=-30, le=80, description="Degrees by which the cameras look down; found if not given."
    )
    tolerance: float | None = pydantic.Field(
        None,
        gt=0,
        le=1,
        description="RGB distance up to which a color belongs to a plain background; found if not given.",
    )
    up: Literal["z", "y"] = pydantic.Field("z", description="Axis that is up in OBJ, STL and PLY files.")
    size: float | None = pydantic.Field(None, gt=0, le=1000, description="Longest side of the mesh in meters.")


class Request(Options):
    """A job: pictures, the front first, and options."""

    pictures: Annotated[list[Picture], pydantic.Field(min_length=1, max_length=MAX_PICTURES)]


class Progress(pydantic.BaseModel):
    """Where a job is.

    Attributes:
      state: whether it waits, runs, or has ended, and how.
      ahead: jobs that run before it.
      stage: what it is at.
      compiling: whether the programs of the stage may be being compiled, which happens once.
      done: steps of the stage that are done.
      total: steps of the stage.
      remaining: estimated seconds until the mesh is there; None if unknown.
      message: why it failed.
      warnings: what may be wrong with the pictures or the result.
    """

    state: State = "waiting"
    ahead: int = 0
    stage: str = ""
    compiling: bool = False
    done: int = 0
    total: int = 0
    remaining: float | None = None
    message: str = ""
    warnings: list[str] = []


class Job(pydantic.BaseModel):
    """A job and its files.

    Attributes:
      id: names it in addresses.
      progress: where it is.
      files: names of the files of the result, or of a preview while the job runs, at ``/api/jobs/ID/files/NAME``.
      expires: when the result is removed, in seconds since 1970; None before there is one.
    """

    id: str
    progress: Progress
    files: list[str] = []
    expires: float | None = None


class Refusal(pydantic.BaseModel):
    """Why something was refused, in one sentence."""

    detail: str


def sentence(error: Mapping[str, Any]) -> str:
    """Return what Pydantic found wrong with a value, in one sentence."""
    where = ".".join(str(part) for part in error["loc"]) or "the request"
    return f"{where}: {error['msg']}"
