"""Checkpoints of PyTorch are read without PyTorch; a pickle that asks for more than tensors is refused."""

import checkpoint_files as files
import numpy as np
import pytest

from e3d_jax.weights import torch_pickle

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.float32(7).reshape(()),
    "c": np.arange(4, dtype=np.float16),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.ckpt"


def read(path):
    return {name: tensor.read() for name, tensor in torch_pickle.read(path).items()}


def with_more(more):
    """Return opcodes of a checkpoint with something beside its tensors."""
    return b"(" + files.value("state_dict") + files.state(ARRAYS) + files.value("more") + more + b"d"


@pytest.mark.parametrize("pickled", [None, files.state(ARRAYS), with_more(files.value({"epoch": 3}))])
def test_every_tensor_is_read(path, pickled):
    files.write(path, ARRAYS, pickled)
    found = read(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_view_of_a_storage_is_read(path):
    array = ARRAYS["a.weight"]
    view = files.tensor("0", np.zeros((2, 2), np.float32), offset=1, strides=(1, 3))
    files.write(path, {"a": array}, b"(" + files.value("a") + view + b"d")
    np.testing.assert_array_equal(read(path)["a"], [[1, 4], [2, 5]])


def test_a_parameter_is_its_tensor(path):
    parameter = files.name("torch._utils", "_rebuild_parameter") + b"(" + files.tensor("0", ARRAYS["a.weight"])
    parameter += files.value(True) + files.name("collections", "OrderedDict") + b")RtR"
    files.write(path, ARRAYS, b"(" + files.value("a") + parameter + b"d")
    np.testing.assert_array_equal(read(path)["a"], ARRAYS["a.weight"])


def test_callbacks_of_the_trainer_are_ignored(path):
    callback = files.name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    files.write(path, ARRAYS, with_more(b"(" + callback + files.value({"best": 1}) + b"d"))
    assert read(path).keys() == ARRAYS.keys()


@pytest.mark.parametrize("module, attribute", [("posix", "system"), ("builtins", "eval"), ("torch", "load")])
def test_a_pickle_that_runs_code_is_refused_and_not_run(path, tmp_path, module, attribute):
    call = files.name(module, attribute) + b"(" + files.value(f"touch {tmp_path}/ran") + b"tR"
    files.write(path, ARRAYS, with_more(call))
    with pytest.raises(ValueError, match=f"it asks for {module}.{attribute}, which is not part of a tensor"):
        torch_pickle.read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "pickled, message",
    [
        (b"(" + files.value("a") + files.value(3) + b"d", "a in .* is not a tensor of type HalfStorage"),
        (
            b"(" + files.value("a") + files.tensor("0", ARRAYS["c"], kind="LongStorage") + b"d",
            "a in .* is not a tensor",
        ),
        (b"(" + files.value("a") + files.tensor("0", np.zeros((4, 3), np.float32)) + b"d", "outside the file's"),
        (b"(" + files.value("a") + files.tensor("9", ARRAYS["c"]) + b"d", "outside the file's"),
        (b"(" + files.value("a") + files.tensor("0", ARRAYS["c"], offset=-8) + b"d", "outside the file's"),
        (b"(" + files.value("a") + files.tensor("0", ARRAYS["c"], offset="x") + b"d", "outside the file's"),
        (files.value([1]), "holds no tensors by name"),
        (b"(", "cannot be used"),
    ],
)
def test_a_bad_pickle_is_refused(path, pickled, message):
    files.write(path, ARRAYS, pickled)
    with pytest.raises(ValueError, match=message):
        torch_pickle.read(path)


def test_a_truncated_file_is_refused(path):
    files.write(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"file.ckpt is damaged, or not a checkpoint of PyTorch"):
        torch_pickle.read(path)


def test_a_file_of_the_oldest_format_is_read(path):
    files.write_legacy(path, ARRAYS)
    found = read(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_storages_of_the_oldest_format_that_are_not_floats_are_skipped(path):
    arrays = {"counter": np.arange(3), "b": ARRAYS["b"]}
    weights = b"(" + files.value("b") + files.tensor("1", ARRAYS["b"]) + b"d"
    counter = files.value("counter") + files.tensor("0", arrays["counter"])
    files.write_legacy(path, arrays, b"(" + files.value("state_dict") + weights + counter + b"d")
    assert read(path) == {"b": 7}


@pytest.mark.parametrize("lost", [1, 30])
def test_a_truncated_file_of_the_oldest_format_is_refused(path, lost):
    files.write_legacy(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(ValueError, match=r"file.ckpt is damaged, or not a checkpoint of PyTorch"):
        torch_pickle.read(path)


def test_a_pickle_of_the_oldest_format_that_runs_code_is_refused(path):
    call = files.name("posix", "system") + b"(" + files.value("true") + b"tR"
    files.write_legacy(path, ARRAYS, with_more(call))
    with pytest.raises(ValueError, match=r"it asks for posix\.system"):
        torch_pickle.read(path)


def test_a_missing_file_is_an_os_error(path):
    with pytest.raises(FileNotFoundError):
        torch_pickle.read(path)
