"""Drawn objects as records; imported by the encoding processes."""

from e3d_jax import cameras
from e3d_jax.data import records, synthetic


def pack(example: synthetic.Example, split: str, seed: int) -> bytes:
    """A drawn object as a record."""
    size = example.rgba.shape[1]
    name = f"{split}-{seed}-{example.index}"
    provenance = {"generator": "e3d_jax.data.synthetic", "split": split, "seed": seed, "index": example.index}
    views, normals = ([records.encode_png(image) for image in images] for images in (example.rgba, example.normals))
    ring = cameras.ring(size, len(views))
    return records.pack(
        records.Record(name, provenance, size, views, cameras.anchors_of(len(views)).tolist(), normals, ring)
    )
