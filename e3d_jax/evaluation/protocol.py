"""Fixed lists of objects and camera poses, so that figures of different systems can be compared.

A protocol is a JSON file in ``protocols/``: ``objects``, their names; ``input_view``, the view that a system is given;
``views``, the views that it makes, by number; ``transform_matrices``, their poses (camera-to-world in OpenGL camera
axes); and ``focal``, the focal length over the image width.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from e3d_jax import cameras, images, structs, views_io

FOLDER = pathlib.Path(__file__).parent / "protocols"
ROUNDING = 1e-3  # of poses and of lengths over the image width; a quarter of a pixel in images of 256


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is scored.

    Attributes:
      name: of the protocol.
      objects: names of the objects.
      input_view: the view that a system is given, which is not scored.
      views: all views, by number.
      poses: camera-to-world matrices of the views, OpenGL camera axes.
      focal: focal length over image width.
    """

    name: str
    objects: list[str]
    input_view: int
    views: list[int]
    poses: Float[np.ndarray, "v 4 4"]
    focal: float

    def cameras(self, size: int) -> structs.Cameras:
        """Return the cameras of the views for square images of that size in pixels."""
        count = len(self.views)
        return structs.Cameras(
            world_from_cam=cameras.opengl_from_opencv(self.poses),  # its own inverse
            focal=np.full((count, 2), self.focal * size, np.float32),
            center=np.full((count, 2), size / 2, np.float32),
            width=size,
            height=size,
        )

    def difference(self, views: Sequence[int], cams: structs.Cameras) -> str | None:
        """Name what differs from the cameras of the protocol by more than rounding, if anything does.

        Args:
          views: numbers of the cameras; those that are not in the protocol may be anywhere.
          cams: one for each.
        """
        own = self.cameras(cams.width)
        for at, view in enumerate(views):
            if view not in self.views:
                continue
            given, fixed = cams[[at]], own[[self.views.index(view)]]
            off = {
                "pose": given.world_from_cam - fixed.world_from_cam,
                "focal length": (given.focal - fixed.focal) / cams.width,
                "principal point": (given.center - fixed.center) / cams.width,
            }
            for name, by in off.items():
                if np.abs(by).max() > ROUNDING:
                    return f"the {name} of view {view}"
        return None

    def scored(self, rgba: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Return the images of the views that are scored, by number.

        Raises:
          ValueError: one is missing.
        """
        wanted = [view for view in self.views if view != self.input_view]
        if lost := [view for view in wanted if view not in rgba]:
            raise ValueError(
                f"view {lost[0]} is missing, which the protocol {self.name} scores; generate all its views"
            )
        return {view: rgba[view] for view in wanted}

    def posed(self, rgba: Mapping[int, np.ndarray], normals: Mapping[int, np.ndarray]) -> structs.ViewSet:
        """Return the views and encoded normal maps that are there, with the poses of the protocol.

        Args:
          rgba: views by number, all square and of one size.
          normals: encoded normal maps of some of them.

        Raises:
          ValueError: there are no views of the protocol, or an image has another size.
        """
        there = [at for at, view in enumerate(self.views) if view in rgba]
        if not there:
            raise ValueError(f"none of the views {self.views} of the protocol {self.name} is there; generate them")
        mapped = [at for at, view in enumerate(self.views) if view in rgba and view in normals]
        shown, maps = ([kind[self.views[at]] for at in some] for kind, some in ((rgba, there), (normals, mapped)))
        size = len(shown[0])
        if other := [each.shape for each in shown + maps if each.shape[:2] != (size, size)]:
            raise ValueError(
                f"the protocol {self.name} has square views of one size, but one is {other[0][1]} x {other[0][0]} px "
                f"and the first {size} px high; resize them"
            )
        decoded = [images.decode_normal(each, shortest=views_io.SHORTEST_NORMAL) for each in maps]
        return structs.ViewSet(
            rgba=np.stack(shown),
            cameras=self.cameras(size)[there],
            normal_views=np.searchsorted(there, mapped),
            normals=np.array(decoded, np.float32).reshape(-1, size, size, 3),
            anchors=np.arange(len(there)),
        )


def names() -> list[str]:
    """Return the names of all protocols."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Protocol:
    """Return a protocol.

    Raises:
      ValueError: there is none of that name.
    """
    path = FOLDER / f"{name}.json"
    if name not in names():
        raise ValueError(f"there is no protocol {name!r}; known: {', '.join(names())}")
    values = json.loads(path.read_text())
    poses = np.array(values["transform_matrices"], np.float32)
    return Protocol(name, values["objects"], values["input_view"], values["views"], poses, values["focal"])
