"""The user's own pictures, of all kinds, and their cache."""

import itertools
import multiprocessing
import os
import pathlib
import pickle
import runpy

import numpy as np
import pytest
from PIL import Image

from pd_jax import api, data
from pd_jax import config as configs
from pd_jax.data import _folder_cache, image_folder
from pd_jax.data._records import Records

SIZE = 8


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def mixed(tmp_path):
    """33 files that look like pictures, in three classes; four of them are not."""
    root = tmp_path / "pictures"
    for i in range(18):
        height, width = 8 + i, 30 - i
        image = Image.fromarray(noise(i, height, width, 3))
        save(root / "cats" / ("more" if i % 2 else "") / f"{i:02}.png", image)
    for i, suffix in enumerate(("jpg", "JPEG", "webp", "WebP", "jpeg", "PNG")):
        save(root / "dogs" / f"{i}.{suffix}", Image.fromarray(noise(i, 16, 16, 3)))
    odd = root / "odd"
    save(odd / "alpha.png", Image.new("RGBA", (9, 9), (0, 0, 0, 0)))
    save(odd / "grey.png", Image.fromarray(noise(1, 9, 9)))
    save(odd / "palette.png", Image.fromarray(noise(2, 9, 9, 3)).quantize(16))
    save(odd / "tiny.png", Image.new("RGB", (1, 1), (255, 0, 0)))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    half = np.zeros((8, 8, 3), np.uint8)
    half[:4] = 255
    save(odd / "turned.png", Image.fromarray(half), exif=exif)
    whole = (root / "dogs" / "0.jpg").read_bytes()
    (odd / "corrupt.jpg").write_bytes(b"\0" * 100 + whole[100:])
    (odd / "truncated.jpg").write_bytes(whole[:300])
    (odd / "text.png").write_text("not a picture")
    (odd / "gone.webp").symlink_to(root / "nowhere.webp")
    # Not even looked at:
    (odd / "notes.txt").write_text("notes")
    (odd / "._alpha.png").write_text("another system's")
    (root / ".thumbnails").mkdir()
    (root / ".thumbnails" / "a.png").write_text("another program's")
    (root / "cats" / "loop").symlink_to(root)
    return root


@pytest.fixture
def load(tmp_path):
    def load(path, **options):
        given = {"size": SIZE, "cache": str(tmp_path / "cache"), **options}
        return data.get("image_folder", path=str(path), **given)

    return load


def levels(dataset):
    images = dataset.take(np.arange(len(dataset)))["image"]
    return np.rint((images + 1.0) * 127.5).astype(np.uint8)


def test_all_that_can_be_read(mixed, load, capsys):
    pictures = load(mixed)
    errors = capsys.readouterr().err
    assert len(pictures) == 29
    assert pictures.shape == (SIZE, SIZE, 3)
    assert pictures.num_classes == 0
    assert "4 of 33 files cannot be read" in errors
    for name in ("corrupt.jpg", "truncated.jpg", "text.png", "gone.webp"):
        assert errors.count(f"odd/{name}: ") == 1
    assert "1 of 33 pictures are smaller" in errors
    alpha, grey, palette, tiny, turned = levels(pictures)[-5:]
    assert np.all(alpha == 255)
    assert np.all(grey == grey[..., :1])
    assert np.any(palette != palette[..., :1])
    assert np.all(tiny == [255, 0, 0])
    assert np.all(turned[:4] == 0)
    assert np.all(turned[4:] == 255)
    first = np.asarray(Image.open(mixed / "cats" / "00.png"))
    np.testing.assert_array_equal(levels(pictures)[0], first[:, 11:19])
    batch = next(pictures.batches(0, 4, (0,)))
    assert batch["image"].shape == (4, SIZE, SIZE, 3)
    assert "label" not in batch


def test_common_suffixes_are_read_and_the_rest_is_counted(tmp_path, load, capsys):
    root = tmp_path / "pictures"
    read = [
        "png",
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "webp",
        "gif",
        "bmp",
        "dib",
        "tif",
        "TIFF",
        "ppm",
        "pgm",
        "pbm",
        "tga",
    ]
    formats = {"jfif": "JPEG", "jpe": "JPEG", "TIFF": "TIFF"}
    for suffix in read:
        mode = {"pgm": "L", "pbm": "1"}.get(suffix, "RGB")
        image = Image.fromarray(noise(0, 8, 8, 3)).convert(mode)
        save(root / "a" / f"x.{suffix}", image, format=formats.get(suffix))
    for name in ("b.txt", "c.txt", "d.txt", "e.txt", "f.heic", "LICENSE"):
        (root / name).write_text("no picture")
    (root / "none").mkdir()
    assert len(load(root)) == len(read)
    said = capsys.readouterr().err
    assert "6 other files are left out" in said
    assert "  4 .txt: b.txt, c.txt, d.txt and 1 more" in said
    assert "  1 .heic: f.heic" in said
    assert "  1 without: LICENSE" in said
    load(root, labels=True)
    assert "none: no class, as no picture is in it" in capsys.readouterr().err


def test_classes_are_folders(mixed, load):
    pictures = load(mixed, labels=True, flip=True)
    assert pictures.label_names == ("cats", "dogs", "odd")
    assert pictures.num_classes == 3
    assert pictures.labels.dtype == np.int32
    np.testing.assert_array_equal(pictures.labels, np.repeat([0, 1, 2], [18, 6, 5]))
    assert next(pictures.batches(0, 4, (0,)))["label"].shape == (4,)


def test_many_pictures_stay_on_disk(mixed, load, monkeypatch):
    in_memory = load(mixed, labels=True, flip=True)
    monkeypatch.setattr(image_folder, "IN_MEMORY_BYTES", 0)
    on_disk = load(mixed, labels=True, flip=True)
    assert isinstance(on_disk, Records)
    assert on_disk.label_names == in_memory.label_names
    assert on_disk.num_classes == 3
    rows = np.arange(29)[::-1]
    for key in ("image", "label"):
        np.testing.assert_array_equal(
            in_memory.take(rows)[key], on_disk.take(rows)[key]
        )
    for_a_worker = pickle.loads(pickle.dumps(on_disk))
    batches = for_a_worker.batches(0, 29, (0,))
    batch = next(batches)
    batches.close()
    assert batch["image"].dtype == np.float32
    np.testing.assert_array_equal(np.sort(batch["label"]), in_memory.labels)


def test_second_start_decodes_nothing(mixed, load, capsys):
    before = levels(load(mixed))
    first = capsys.readouterr().err
    for path in mixed.rglob("*.png"):  # other bytes, as many, of the same time
        times = path.lstat().st_atime_ns, path.lstat().st_mtime_ns
        path.write_bytes(b"\0" * path.stat().st_size)
        os.utime(path, ns=times)
    np.testing.assert_array_equal(levels(load(mixed)), before)
    assert capsys.readouterr().err == first
    assert len(load(mixed, labels=True)) == 29  # labels need no other cache


def test_folders_that_are_not_used_as_classes_are_said(mixed, load, capsys):
    load(mixed)
    said = capsys.readouterr().err
    assert "3 folders are not used as classes; data.labels=True and model" in said
    assert "num_classes=3 train on them" in said
    load(mixed, labels=True)
    load(mixed / "dogs")
    assert "classes" not in capsys.readouterr().err


def test_a_change_makes_another_cache(mixed, load):
    before = levels(load(mixed))
    assert load(mixed, size=4).shape == (4, 4, 3)
    path = mixed / "cats" / "00.png"
    save(path, Image.new("RGB", (8, 8), (1, 2, 3)))
    after = levels(load(mixed))
    assert np.all(after[0] == [1, 2, 3])
    np.testing.assert_array_equal(after[1:], before[1:])
    os.utime(path, ns=(0, 0))
    path.write_bytes(path.read_bytes())
    assert len(load(mixed)) == 29
    path.unlink()
    assert len(load(mixed)) == 28


def test_a_cache_is_whole_or_not_there(mixed, load, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    squares = _folder_cache._squares

    def stop(*arguments):
        yield from itertools.islice(squares(*arguments), 20)
        assert [path for path in cache.iterdir() if path.is_dir()]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_folder_cache, "_squares", stop)
        with pytest.raises(KeyboardInterrupt):
            load(mixed)
    assert not [path for path in cache.iterdir() if path.is_dir()]
    assert len(load(mixed)) == 29


@pytest.mark.parametrize("name", ["squares", "notes.json"])
@pytest.mark.parametrize("left", [0, 100, 66_000])
def test_a_damaged_cache_says_so(mixed, load, tmp_path, name, left):
    load(mixed)
    (made,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    file = made / name
    content = bytearray(file.read_bytes())
    if left < len(content):
        file.write_bytes(content[:left])
    else:
        file.write_bytes(bytes(len(content)))
    with pytest.raises(ValueError, match=r"damaged: delete it"):
        load(mixed)


def load_and_send(path, cache, start, results):
    start.wait()
    dataset = data.get("image_folder", path=path, cache=cache, size=SIZE)
    results.put(dataset.images.sum(dtype=int))


@pytest.mark.slow
def test_processes_that_start_at_once(mixed, tmp_path):
    cache = str(tmp_path / "cache")
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    arguments = str(mixed), cache, start, results
    processes = [
        context.Process(target=load_and_send, args=arguments) for _ in range(2)
    ]
    for process in processes:
        process.start()
    sums = [results.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    assert sums[0] == sums[1] == load_sum(mixed, cache)
    assert len([name for name in os.listdir(cache) if not name.startswith(".")]) == 1
    assert not [name for name in os.listdir(cache) if name.endswith(".tmp")]


def load_sum(path, cache):
    dataset = data.get("image_folder", path=str(path), cache=cache, size=SIZE)
    return dataset.images.sum(dtype=int)


def test_machines_that_share_a_cache(mixed, load, monkeypatch):
    """The second to finish throws its own away."""
    make = _folder_cache._make

    def make_late(folder, *rest):
        make(folder, *rest)
        if folder.name.endswith(".slow.tmp"):
            monkeypatch.setattr(_folder_cache.socket, "gethostname", lambda: "fast")
            load(mixed)

    monkeypatch.setattr(_folder_cache, "_make", make_late)
    monkeypatch.setattr(_folder_cache.socket, "gethostname", lambda: "slow")
    assert len(load(mixed)) == 29


def test_too_many_bad_files(mixed, load, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)4 of 33.*max_bad allows 0.*corrupt"):
        load(mixed, max_bad=0.0)
    load(mixed)
    with pytest.raises(ValueError, match="4 of 33"):  # of a cache, too
        load(mixed, max_bad=0.0)
    for i in range(7):
        (mixed / f"{i}.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"(?s)11 of 40 .* allows 10"):
        load(mixed)
    assert len(load(mixed, max_bad=0.3)) == 29
    for i in range(3):
        bad = tmp_path / "bad" / f"{i}.png"
        bad.parent.mkdir(exist_ok=True)
        bad.write_text("no picture")
    with pytest.raises(ValueError, match="3 of 3"):
        load(tmp_path / "bad")


def test_wrong_use(mixed, load, tmp_path):
    (tmp_path / "empty").mkdir()
    cases = [
        ("", {}, r'data\.path=""'),
        (tmp_path / "nowhere", {}, r"data\.path=.*nowhere"),
        (tmp_path / "empty", {}, r"no pictures.*\.webp"),
        (mixed, {"size": 0}, r"data\.size=0"),
        (mixed, {"max_bad": 2.0}, r"data\.max_bad=2"),
        (mixed / "dogs", {"labels": True}, r"data\.labels=True"),
    ]
    for path, options, says in cases:
        with pytest.raises(ValueError, match=says):
            load(path, **options)


@pytest.mark.slow
def test_two_hundred_pictures_are_distilled(tmp_path, capsys):
    for i in range(198):
        pixels = noise(i, 20 + i % 7, 24, 3) // 2
        pixels[4 : 4 + i % 9, 4:12] = 255
        save(tmp_path / "mine" / f"{i:03}.jpg", Image.fromarray(pixels))
    save(tmp_path / "mine" / "grey.png", Image.fromarray(noise(1, 30, 20)))
    (tmp_path / "mine" / "broken.jpg").write_bytes(b"\xff\xd8\xff" + b"\0" * 400)
    path = pathlib.Path(__file__).parents[1] / "configs" / "image_folder.py"
    config = runpy.run_path(str(path))["get_config"]("smoke")
    config.data.path = str(tmp_path / "mine")
    config.data.cache = str(tmp_path / "cache")
    small = configs.default("image_folder", "mlp")  # as quick as it is bad
    small.update({k: v for k, v in config.items() if k != "model"})
    small.model.width = 32
    report = api.run(small, tmp_path / "run", "mine")
    printed, warned = capsys.readouterr()
    assert "broken.jpg" in warned
    assert "grey.png" not in warned
    assert "199 examples of shape (16, 16, 3)" in printed
    assert {"teacher", "student"} == {row["model"] for row in report["rows"]}
    assert "199 training examples" in report["protocol"]["frechet_pixels"]
    with Image.open(tmp_path / "run" / "samples" / "student_1.png") as grid:
        assert grid.mode == "RGB"


def test_a_cache_that_cannot_be_written_names_its_key(mixed, tmp_path, monkeypatch):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    says = r"data\.cache=.* cannot be written there .*--config\.data\.cache=FOLDER"
    for cache in (in_the_way, in_the_way / "below"):
        with pytest.raises(OSError, match=says):
            data.get("image_folder", path=str(mixed), cache=str(cache), size=SIZE)
    monkeypatch.setenv("HOME", str(in_the_way))
    with pytest.raises(OSError, match=says):
        data.get("image_folder", path=str(mixed), size=SIZE)
