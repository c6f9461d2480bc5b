"""How far the host runs ahead of the device, on a clock of the tests' own."""

from types import SimpleNamespace

import pytest

from pd_jax.training import pace


class Device:
    """A device that works off one call after the other; its clock is the only one."""

    def __init__(self):
        self.now = self.free = self.idle = 0.0

    def call(self, seconds):
        """A call that takes so long; its result."""
        self.idle += max(self.now - self.free, 0.0)
        self.free = end = max(self.free, self.now) + seconds

        def wait():
            self.now = max(self.now, end)

        return SimpleNamespace(is_ready=lambda: self.now >= end, block_until_ready=wait)


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: device.now))
    return device


def run(device, paces, seconds, calls, host=1e-4):
    """The most work that was in flight after a call, in seconds."""
    most = 0.0
    for _ in range(calls):
        device.now += host
        paces.add([device.call(seconds)])
        most = max(most, device.free - device.now)
    return most


@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.2, 1.5, 60.0])
def test_a_stop_waits_for_two_updates_or_half_a_second(device, seconds):
    most = run(device, pace.Pace(), seconds, 300)
    assert most <= max(2 * seconds, pace.SECONDS + seconds)
    assert device.idle <= 2e-4  # before the first call


def test_fast_calls_are_as_far_ahead_as_before(device):
    most = run(device, pace.Pace(), 0.001, 300)
    assert most == pytest.approx(0.001 * pace.MAX_AHEAD, rel=0.1)


def test_updates_that_become_slow_are_noticed(device):
    paces = pace.Pace()
    run(device, paces, 0.001, 100)
    run(device, paces, 1.5, 2 * pace.MAX_AHEAD)
    assert run(device, paces, 1.5, 10) <= 3.0


def test_a_pause_of_the_host_does_not_let_more_into_flight(device):
    paces = pace.Pace()
    run(device, paces, 0.1, 100)
    device.now += 60.0  # a checkpoint
    assert run(device, paces, 0.1, 100) <= pace.SECONDS + 0.1
