"""ST-LPIPS and LPIPS compared with the original modules."""

import importlib
import sys
import types

import numpy as np
import pytest

from e3d_jax.evaluation import perceptual

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def images():
    """Two smooth images in [0, 1] of 48 x 64 px that differ a little."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((2, 3, 6, 8), np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(48, 64), mode="bicubic").clip(0, 1)
    return np.ascontiguousarray(smooth.numpy().transpose(0, 2, 3, 1))


def _features(plan):
    """Return the layers of torchvision's AlexNet or VGG with random weights."""
    layers, channels = [], 3
    for out, kernel, stride, padding in plan:
        if out:
            layers += [torch.nn.Conv2d(channels, out, kernel, stride, padding), torch.nn.ReLU(inplace=True)]
            channels = out
        else:
            layers.append(torch.nn.MaxPool2d(kernel, stride))
    return types.SimpleNamespace(features=torch.nn.Sequential(*layers))


ALEX = [(64, 11, 4, 2), (0, 3, 2, 0), (192, 5, 1, 2), (0, 3, 2, 0), *((n, 3, 1, 1) for n in (384, 256, 256))]
VGG = [
    (width, 3, 1, 1) if width else (0, 2, 2, 0)
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
]


@pytest.fixture(scope="module")
def networks():
    """Networks with torchvision's layers."""
    torch.manual_seed(0)
    return {"alex": _features(ALEX), "vgg": _features(VGG)}


@pytest.fixture
def original(monkeypatch, networks):
    """A function that imports an original module, with stand-ins for what it imports but does not need."""
    models = types.SimpleNamespace(
        alexnet=lambda pretrained: networks["alex"], vgg16=lambda pretrained: networks["vgg"]
    )
    stand_ins = {"torchvision": {"models": models}, "torchsummary": {"summary": None}, "IPython": {"embed": None}}
    for name, attributes in stand_ins.items():
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)

    def load(name):
        for imported in [imported for imported in sys.modules if imported.startswith(("lpips", "stlpips"))]:
            monkeypatch.delitem(sys.modules, imported)  # It holds stand-ins of another test.
        pytest.importorskip(name.partition(".")[0])
        return importlib.import_module(name)

    return load


def _distance(module, images):
    first, second = (torch.from_numpy(image.transpose(2, 0, 1))[None] for image in images)
    with torch.no_grad():
        return float(module(first, second, normalize=True))


@pytest.mark.parametrize("trunk", perceptual.TRUNKS)
def test_st_lpips_is_that_of_the_original(original, images, trunk):
    module = original("stlpips_pytorch.stlpips")
    expected = _distance(module.LPIPS(net=trunk, variant="shift_tolerant", verbose=False), images)
    assert perceptual.st_lpips(trunk)(*images).distance == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("trunk", perceptual.TRUNKS)
def test_lpips_is_that_of_the_original(original, networks, images, trunk, tmp_path):
    module = original("lpips")
    state = {f"features.{name}": value for name, value in networks[trunk].features.state_dict().items()}
    torch.save(state, tmp_path / "network.pth")
    expected = _distance(module.LPIPS(net=trunk, verbose=False), images)
    ours = perceptual.lpips(tmp_path / "network.pth", trunk)(*images).distance
    assert ours == pytest.approx(expected, rel=1e-4)


def test_features_are_those_of_the_last_layer(original, images):
    module = original("stlpips_pytorch.stlpips")
    network = module.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    with torch.no_grad():
        inputs = network.scaling_layer(2 * torch.from_numpy(images[0].transpose(2, 0, 1))[None] - 1)
        expected = network.net(inputs)[-1].mean((2, 3))[0].numpy()
    np.testing.assert_allclose(perceptual.st_lpips("alex")(*images).pred, expected, rtol=1e-3, atol=1e-4)
