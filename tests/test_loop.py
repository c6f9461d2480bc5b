"""What a stage's validation loss is measured on."""

from types import SimpleNamespace

import numpy as np
import pytest

from pd_jax.data import InMemory
from pd_jax.runtime import processes
from pd_jax.training import loop
from pd_jax.training.method import Parts
from pd_jax.training.optimizer import Optimizer


@pytest.mark.parametrize("microbatches", [1, 2])
def test_processes_share_the_examples_of_a_check(microbatches, monkeypatch):
    def share(batch, count):
        return batch["image"].reshape(count, -1)

    held_back = InMemory(np.arange(100, dtype=np.float32)[:, None])
    dataset = InMemory(np.full((5, 1), -1.0, np.float32), held_back=held_back)
    optimizer = Optimizer(microbatches=microbatches)
    training = SimpleNamespace(
        batch=8,
        method=SimpleNamespace(parts=Parts(optimizer=optimizer)),
        dataset=dataset,
        step=SimpleNamespace(share=share),
    )

    def taken(index, count):
        monkeypatch.setattr(processes, "part", lambda: (index, count))
        return loop._validation_batches(training)

    whole = taken(0, 1)
    assert whole.shape == (loop.BATCHES * microbatches, 8 // microbatches)
    rows = whole.ravel()
    assert set(np.diff(rows)) == {3.0, 4.0}  # evenly from all of the held-back ones
    assert rows[-1] > 95
    parts = [taken(i, 2) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
