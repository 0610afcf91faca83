"""Memory of messages is used again, and never while somebody looks into it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpi_ntkdfl.comm.buffers import Buffers
from mpi_ntkdfl.model.params import ALIGNMENT


def test_memory_comes_back_with_the_last_view_and_not_before():
    buffers = Buffers()
    first = buffers.empty(1 << 16)
    where, view = first.data_ptr(), first[128:256].view(torch.float32).view(4, 8)
    del first
    second = buffers.empty(1 << 16)
    assert second.data_ptr() != where
    del view
    assert buffers.empty(1 << 16).data_ptr() == where


def test_an_array_that_numpy_or_mpi_holds_keeps_the_memory():
    buffers = Buffers()
    tensor = buffers.empty(4096)
    where, held = tensor.data_ptr(), tensor.numpy()
    del tensor
    assert buffers.empty(4096).data_ptr() != where
    assert held.ctypes.data == where


@given(st.lists(st.tuples(st.integers(0, 5000), st.booleans()), max_size=30))
def test_no_two_lent_pieces_overlap_and_all_start_on_cache_lines(asked):
    buffers, held = Buffers(), []
    for number, (nbytes, keep) in enumerate(asked):
        tensor = buffers.empty(nbytes)
        assert (tensor.shape, tensor.dtype) == ((nbytes,), torch.uint8)
        if nbytes:
            assert tensor.data_ptr() % ALIGNMENT == 0
        tensor.fill_(number)
        if keep:
            held.append((number, tensor))
    for number, tensor in held:
        assert (tensor.numpy() == number).all()


@pytest.mark.parametrize("size", [100, 10_000])
def test_a_small_message_does_not_hold_a_huge_block(size):
    buffers = Buffers()
    buffers.empty(50 * size)
    small = buffers.empty(size)
    assert np.asarray(small).nbytes == size
    assert small.untyped_storage().nbytes() <= 4 * size
    assert len(buffers._free) == 1
