"""Files that are written whole, by several processes too."""

import multiprocessing
import os

import pytest
from etils import epath

from pd_jax.storage.writers import replacing, write_whole

SIZE = 2**20


def write_often(path, letter, barrier):
    barrier.wait(60)
    for _ in range(30):
        write_whole(epath.Path(path), letter * SIZE)


def test_processes_that_write_one_file_each_write_it_whole(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    path, barrier = tmp_path / "file", spawn.Barrier(4)
    given = [(path, letter, barrier) for letter in (b"a", b"b", b"c")]
    processes = [spawn.Process(target=write_often, args=args) for args in given]
    for process in processes:
        process.start()
    barrier.wait(60)
    while any(process.is_alive() for process in processes):
        if path.exists():
            content = path.read_bytes()
            assert content in (letter * SIZE for letter in (b"a", b"b", b"c"))
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    (tmp_path / ".file.tmp").write_bytes(b"x" * 100)
    with replacing(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_what_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.write("no bytes")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
