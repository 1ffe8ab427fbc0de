"""What the metrics read: percentiles by counting, no copies, dtypes that kernels do not know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import is_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from microdiffusion_fast import metrics
from microdiffusion_fast.metrics_input import Pair, as_volume, percentiles


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(1, 3000),
    st.integers(0, 17),
)
def test_percentiles_of_integers_are_numpys(seed: int, dtype: Any, size: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    top = min(2**bits, np.iinfo(dtype).max + 1)
    volume = rng.integers(0, top, (1, 1, size)).astype(dtype)
    got = percentiles(torch.from_numpy(volume), (0.1, 99.9))
    assert got == tuple(np.percentile(volume, (0.1, 99.9)))


def test_evaluate_copies_no_volume() -> None:
    """Every tensor that is made while two uint16 volumes are compared is far smaller than they."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 50000, (16, 64, 64), dtype=np.uint16) for _ in range(2))
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            shared = {a.untyped_storage().data_ptr() for a in tree_leaves(args) if is_tensor(a)}
            for tensor in filter(is_tensor, tree_leaves(result)):
                if tensor.untyped_storage().data_ptr() not in shared:
                    largest = max(largest, tensor.nbytes)
            return result

    for array in (x, y):
        array.flags.writeable = False
    with Largest():
        metrics.evaluate(y, x)
    assert 0 < largest <= x.nbytes // 8


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.int8, np.int16, np.int32, np.int64, np.float16, np.float64]
)
def test_volumes_keep_their_values(dtype: Any) -> None:
    values = np.arange(-4, 4).astype(dtype).reshape(2, 2, 2)
    np.testing.assert_array_equal(as_volume("x", values).numpy(), values)
    flipped = values[::-1, :, ::-1]
    np.testing.assert_array_equal(as_volume("x", flipped).numpy(), flipped)


def test_read_only_memory_is_shared_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    values = np.ones((2, 3, 4), dtype=np.float32)
    values.flags.writeable = False
    assert as_volume("x", values).data_ptr() == values.ctypes.data
    assert len(recwarn) == 0


def test_an_image_is_one_slice_of_its_own_shape() -> None:
    image = np.ones((3, 4))
    pair = Pair.of(image, image)
    assert pair.is_image and pair.shape == [3, 4] and pair.x.shape == (1, 3, 4)
