"""Muon: orthogonalized momentum as the update of a matrix (Jordan et al. 2024; arXiv 2502.16982).

Optax also has it, but for one matrix after another. Here matrices of the same shape share their products; a U-Net of
two hundred kernels would otherwise launch thousands per step.
"""

import collections
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

MOMENTUM = 0.95
# Root mean square of an update's entries. Adam's have it in practice, so learning rates and weight decay carry over.
RMS = 0.2
# Five steps of the quintic iteration bring singular values between 0.002 and 1 to between 0.68 and 1.14.
COEFFICIENTS = ((3.4445, -4.7750, 2.0315),) * 5


def scale_by_muon() -> optax.GradientTransformation:
    """Return updates of kernels ``[..., in, out]`` from their gradients; all axes but the last count as inputs."""
    return optax.chain(optax.trace(MOMENTUM, nesterov=True), optax.stateless(lambda updates, _: orthogonal(updates)))


def orthogonal(updates: Any) -> Any:
    """Return a tree of kernels, each with its singular values brought close to one, then scaled to :data:`RMS`."""
    kernels, tree = jax.tree.flatten(updates)
    groups = collections.defaultdict(list)
    for index, kernel in enumerate(kernels):
        groups[math.prod(kernel.shape[:-1]), kernel.shape[-1]].append(index)
    for (rows, columns), indices in groups.items():
        stacked = jnp.stack([kernels[index].reshape(rows, columns) for index in indices])
        turned = orthogonal_matrices(stacked) * RMS * math.sqrt(max(rows, columns))
        for index, matrix in zip(indices, turned, strict=True):
            kernels[index] = matrix.reshape(kernels[index].shape)
    return jax.tree.unflatten(tree, kernels)


def orthogonal_matrices(stacked: Float[Array, "k m n"]) -> Float[Array, "k m n"]:
    """Return approximately U V^T of each matrix U S V^T, by Newton-Schulz iteration."""
    tall = stacked.shape[1] > stacked.shape[2]
    x = stacked.swapaxes(1, 2) if tall else stacked
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-12)
    for a, b, c in COEFFICIENTS:
        square = x @ x.swapaxes(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.swapaxes(1, 2) if tall else x
