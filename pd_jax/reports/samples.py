"""Samples on the command line: a grid, a folder of pictures, or an array of many.

Folders and arrays are made batch by batch, and go on where they were stopped: which
samples they hold is a function of student, seed, label and place alone.
"""

import contextlib
import fcntl
import io
import json
import math
import os
import pathlib
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pd_jax.reports import grids
from pd_jax.runs import loading
from pd_jax.runtime import console, numerics
from pd_jax.runtime.errors import Refused
from pd_jax.runtime.interrupt import Interrupt
from pd_jax.runtime.progress import Progress
from pd_jax.space import PICTURES
from pd_jax.storage import files
from pd_jax.storage.writers import replacing, write_whole
from pd_jax.students.student import Student

BATCH = 256
MOST_IN_GRID = 4096
OTHERS = (".gif", ".jpeg", ".jpg", ".npy", ".webp", ".zip")  # no names of folders
JOB = ".samples.json"  # within a folder: what it holds


def export(workdir: str, num_steps: int | None = None) -> list[epath.Path]:
    """Writes bundles of a run's finished stages: of one step count, or of all.

    Returns:
      The files, `WORKDIR/students/NAME_STAGE.safetensors`, NAME the folder's, STAGE as
      "student_4".

    Raises:
      Refused: where there is no such student.
      OSError: where a file cannot be written.
    """
    folder = epath.Path(workdir)
    if num_steps is not None and num_steps < 1:
        raise Refused(f"--num_steps={num_steps}: at least 1, as students have")
    if num_steps is not None:
        students = [loading.load(folder, num_steps)]
    else:
        record, config = loading.look(folder)
        students = (
            loading.of_stage(folder, config, stage.training, stage.stage)
            for stage in loading.students(record)
        )
    name, made = folder.resolve().name, []
    for student in students:
        path = folder / "students" / f"{name}_{student.facts['stage']}.safetensors"
        size, digest = student.save(path)
        console.show(f"{path}: {size} bytes\n  sha256 {digest}")
        made.append(path)
    if not made:
        raise Refused(f"{folder}: no student is finished yet")
    return made


def sample(
    path: str,
    out: str,
    num: int,
    label: str | None = None,
    seed: int = 0,
    num_steps: int | None = None,
    sampler: str | None = None,
    program: bool = False,
    teacher: bool = False,
) -> None:
    """Samples a student into `out`: NAME.png a grid, NAME.npz an array, else a folder.

    Args:
      path: a bundle, or a run's folder.
      out: the target.
      num: how many.
      label: a class's name or number; all where None.
      seed: of the noise; the seed's first samples are the same, whatever `num`.
      num_steps: of a run's student; see `pd_jax.load`. Of a teacher, any.
      sampler: in place of the student's own.
      program: samples by a bundle's own program; see `pd_jax.load`.
      teacher: samples a run's teacher.

    Raises:
      Refused: for a target that holds something else, or what cannot be sampled.
      NotFinite: for samples that are not finite; nothing of these is written.
      Interrupted: on SIGINT or SIGTERM; the same command goes on.
    """
    if num < 1 or not 0 <= seed < 2**31:
        raise Refused(f"--num={num}, --seed={seed}: at least 1, and 0 to 2^31 - 1")
    if num_steps is not None and num_steps < 1:
        raise Refused(f"--num_steps={num_steps}: at least 1")
    if teacher and num_steps is None:
        raise Refused(
            "--teacher: it samples in any number of steps, so --num_steps=N is missing"
        )
    target = pathlib.Path(out)
    if not out or target.suffix.lower() in OTHERS:
        raise Refused(f"--out={out}: give NAME.png, NAME.npz, or a folder")
    if teacher and not epath.Path(path).is_dir():
        raise Refused(f"{path} has no teacher: give --from=WORKDIR, a run's folder")
    student = loading.load(path, 0 if teacher else num_steps, program=program)
    kind = {".png": _grid, ".npz": _array}.get(target.suffix.lower(), _folder)
    if label is not None and label.isdigit() and label not in _names(student):
        label = int(label)
    try:
        if not student.is_made_for(sampler):
            console.warn(
                f"--sampler={sampler}: this student was made for {student.sampler}; "
                "with another sampler its samples are worse"
            )
        job = {
            "student": student.digest[:16],
            "num_steps": student.steps(num_steps if teacher else None),
            "sampler": sampler or student.sampler,
            "clip": student.clip,
            "label": student.label_of(label),
            "seed": seed,
        }
        draw = _Draw(student, seed, label, job)
    except Refused as error:
        raise Refused(f"{path}: {error}") from error
    if kind is not _array and not _drawable(student):
        raise Refused(
            f"--out={out}: samples are {student.space.kind} of shape {student.shape}, "
            "no pictures of 1 or 3 channels: give a file NAME.npz"
        )
    kind(draw, num, target)


def _drawable(student: Student) -> bool:
    """Whether a PNG holds a sample; earlier versions made pictures of any channels."""
    return student.space.kind == PICTURES and student.shape[-1] in (1, 3)


def _names(student: Student) -> list[str]:
    return [] if isinstance(student.labels, int | None) else list(student.labels)


def _batches(num: int) -> list[np.ndarray]:
    firsts = range(0, num, BATCH)
    return [np.arange(first, min(first + BATCH, num)) for first in firsts]


class _Draw:
    """A student's samples in order.

    Attributes:
      student, job: the student, and what makes its samples what they are.
    """

    def __init__(self, student: Student, seed: int, label: int | str | None, job: dict):
        self.student, self.job = student, job
        self._key, self._label = numerics.key(seed), label

    def batches(self, num: int, missing=lambda places: True) -> Iterator:
        """(places, samples) of all batches of which something is `missing`."""
        wanted = [places for places in _batches(num) if missing(places)]
        steps = self.job["num_steps"]
        done = steps * (num - sum(map(len, wanted)))
        progress = Progress("sampling", {"samples": (done, steps * num)}, seconds=5.0)
        try:
            with Interrupt() as interrupt:
                for places in wanted:
                    interrupt.check()
                    given = {name: self.job[name] for name in ("num_steps", "sampler")}
                    given |= dict(force=True, batch=BATCH)
                    x = self.student.at(self._key, places, self._label, **given)
                    yield places, x
                    work = steps * len(places)
                    progress.advance("samples", work, f"{num} samples")
                interrupt.check()
        finally:
            progress.close()


def _same(before: dict, job: dict, out: pathlib.Path) -> None:
    """Refuses a target that holds other samples."""
    off = [f"{key}: {before.get(key)} -> {new}" for key, new in job.items()]
    off = [line for line, key in zip(off, job) if before.get(key) != job[key]]
    if off:
        raise Refused(
            f"--out={out} holds other samples ({'; '.join(off)}): give another target, "
            "or move it away"
        )


def _foreign(out: pathlib.Path, error: Exception | str) -> Refused:
    return Refused(
        f"--out={out} is there, and was not made by this command ({error}): give "
        "another target, or move it away"
    )


def _finished(out: pathlib.Path, job: dict, read: Callable[[], str | None]) -> bool:
    """Whether a file is there already, with this job's samples, as `read` tells."""
    if not out.exists():
        return False
    try:
        before = read()
        before = before and json.loads(before)
    except Exception as error:  # a file of anybody's
        raise _foreign(out, files.brief(error)) from error
    if not isinstance(before, dict):
        raise _foreign(out, "it says of no student")
    _same(before, job, out)
    console.say(f"{out}: done already, nothing to do")
    return True


def _check_place(out: pathlib.Path) -> None:
    """Raises OSError where no file can be written: before samples are made for it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(out.parent, os.W_OK)
    except OSError as error:
        raise OSError(f"--out={out} cannot be written ({error.strerror})") from error
    if not writable:
        raise OSError(f"--out={out} cannot be written: no permission in {out.parent}")


def _grid(draw: _Draw, num: int, out: pathlib.Path) -> None:
    if num > MOST_IN_GRID:
        raise Refused(
            f"--num={num}: a grid holds at most {MOST_IN_GRID}; give a folder or a "
            "file NAME.npz"
        )
    job = draw.job | {"num": num}

    def read():
        with Image.open(out) as image:
            return image.info.get("pd_jax")

    if _finished(out, job, read):
        return
    _check_place(out)
    images = np.concatenate([x for _, x in draw.batches(num)])
    side = math.isqrt(num - 1) + 1
    _, places = grids.arranged(num, side)
    drawn = grids.image_grid(images / 127.5 - 1.0, places)
    info = PngInfo()
    info.add_text("pd_jax", json.dumps(job))
    buffer = io.BytesIO()
    Image.open(io.BytesIO(drawn)).save(buffer, "PNG", pnginfo=info)
    write_whole(epath.Path(out), buffer.getvalue())
    console.say(f"{out}: {num} samples")


@contextlib.contextmanager
def _own(folder: pathlib.Path, job: dict, out: pathlib.Path) -> Iterator[None]:
    """Takes a folder for a job, one process at a time: others wait for their turn.

    Raises:
      Refused: where the folder is another job's, or none's.
    """
    place = folder / JOB
    while True:
        _check(folder, place, job, out)  # a folder that is not ours is left as it is
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            _wait(lock, out)
            # Who held it may have removed the folder at the end.
            if folder.exists() and os.path.samestat(os.fstat(lock), folder.stat()):
                _check(folder, place, job, out)
                text = json.dumps(job)
                if not place.exists() or place.read_text() != text:
                    write_whole(epath.Path(place), text)
                yield
                return
        finally:
            os.close(lock)


def _check(
    folder: pathlib.Path, place: pathlib.Path, job: dict, out: pathlib.Path
) -> None:
    """Refuses a folder of other samples, or of other files."""
    if place.exists():
        try:
            before = files.read_json(epath.Path(place))
        except Refused as error:
            raise _foreign(out, error) from error
        if _visible(folder):
            _same(before, job, out)
    elif folder.exists() and (not folder.is_dir() or _visible(folder)):
        raise _foreign(out, f"no {JOB}")


def _visible(folder: pathlib.Path) -> list[str]:
    return [name for name in os.listdir(folder) if not name.startswith(".")]


def _wait(lock: int, out: pathlib.Path) -> None:
    """Locks an open folder; some network file systems have no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        console.say(f"--out={out}: another process is at work on it, waiting")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        pass


def _folder(draw: _Draw, num: int, out: pathlib.Path) -> None:
    with _own(out, draw.job, out):
        there = {n for n in os.listdir(out) if re.fullmatch(r"\d{6,}\.png", n)}

        def missing(places):
            return any(f"{place:06d}.png" not in there for place in places)

        made = 0
        for places, images in draw.batches(num, missing):
            for place, image in zip(places, images):
                if (name := f"{place:06d}.png") not in there:
                    made += 1
                    _png(out / name, image)
    done = f"{made} new" if made else "done already, nothing to do"
    if (more := len(there) + made - num) > 0:
        done += f"; --num={num} are asked for: {more} others are left there"
    console.say(f"{out}: {num + max(more, 0)} samples, {done}")


def _png(path: pathlib.Path, image: np.ndarray) -> None:
    """One picture, there whole or not at all; a kill is survived, not a power cut."""
    grey = image.shape[-1] == 1
    with replacing(path) as file:
        Image.fromarray(image[..., 0] if grey else image).save(file, "PNG")


def _array(draw: _Draw, num: int, out: pathlib.Path) -> None:
    job = draw.job | {"num": num}

    def read():
        found = files.read_npz(out, ["pd_jax"])
        return str(found["pd_jax"]) if found else None

    if _finished(out, job, read):
        return
    parts = out.with_name(f".{out.name}.parts")
    with _own(parts, job, out):
        if not _finished(out, job, read):  # by a process that was waited for
            names = _draw_parts(draw, num, parts)
            _join(parts, names, job, out)
            console.say(f"{out}: {num} samples, array arr_0")
        shutil.rmtree(parts)


def _draw_parts(draw: _Draw, num: int, parts: pathlib.Path) -> list[str]:
    """Draws what lacks of an array into files of a folder; returns all their names."""
    there = set(os.listdir(parts))

    def part(places):
        return f"{places[0]}_{len(places)}.npy"

    for places, x in draw.batches(num, lambda places: part(places) not in there):
        if draw.student.space.kind == PICTURES and x.shape[-1] == 1:
            x = x.repeat(3, axis=-1)  # as tools that measure FID take grey pictures
        buffer = io.BytesIO()
        np.save(buffer, x)
        write_whole(epath.Path(parts / part(places)), buffer.getvalue())
    return [part(places) for places in _batches(num)]


def _join(parts: pathlib.Path, names: list[str], job: dict, out: pathlib.Path) -> None:
    """All parts as one `.npz`, one after the other: they need not fit in memory."""
    first = files.parse_npy((parts / names[0]).read_bytes(), names[0])
    header = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": (job["num"], *first.shape[1:]),
    }
    with replacing(out) as whole, zipfile.ZipFile(whole, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for name in names:
                x = files.parse_npy((parts / name).read_bytes(), name)
                file.write(x.tobytes())
        with archive.open("pd_jax.npy", "w") as file:
            np.save(file, np.array(json.dumps(job)))
