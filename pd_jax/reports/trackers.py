"""Callbacks that show a run elsewhere: in TensorBoard, and at Weights & Biases.

Both are views: what they show is in metrics.jsonl and evaluation/ too.
"""

import io
import secrets
import time

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from pd_jax.config.setup import Setup
from pd_jax.evaluation.rows import series_of
from pd_jax.reports import grids
from pd_jax.runtime.errors import Refused
from pd_jax.space import Space
from pd_jax.storage.writers import is_remote, write_whole

FLUSH_SECONDS = 5.0  # after which what is drawn can be seen


def wanted(config: ConfigDict, workdir: epath.Path, name: str) -> list[object]:
    """The callbacks that section `run` of a config asks for; nothing is written yet.

    Raises:
      Refused: for a package that is missing, or a folder that it cannot write to.
    """
    callbacks = []
    if config.run.tensorboard:
        if is_remote(workdir):
            raise Refused(
                f"run.tensorboard=True: writes to local folders only, not {workdir}"
            )
        callbacks.append(TensorBoard(workdir / "tensorboard"))
    if config.run.wandb:
        values = config.to_dict()
        callbacks.append(WeightsAndBiases(config.run.wandb, name, workdir, values))
    return callbacks


def _numbers(entry: dict) -> dict[str, float]:
    """The part of a metrics entry that can be drawn."""
    return {
        name: value
        for name, value in entry.items()
        if isinstance(value, int | float) and name != "update"
    }


class _Samples:
    """A row's samples as one picture.

    Attributes:
      kind: of `pd_jax.space`; "" for what their shape tells.
    """

    kind = ""

    def on_begin(self, setup: Setup, present: list[str]) -> None:
        """Learns what samples are."""
        self.kind = setup.space.kind

    def _grid(self, samples: np.ndarray) -> bytes | None:
        """A PNG of samples [n, ...]; None if they have no picture."""
        space = Space.of(samples.shape[1:], self.kind)
        shown = grids.pictures(samples, space)
        if shown is None:
            return None
        return grids.image_grid(shown, grids.arranged(len(shown), 8)[1])


def _pixels(png: bytes) -> np.ndarray:
    """A picture as uint8 [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


class TensorBoard(_Samples):
    """TensorBoard's files, in tensorboardX's form of them.

    Every stage is a run there, with updates as steps, and so are the report's rows
    (rows/teacher, rows/student), with sampling steps as steps.
    """

    def __init__(self, folder: epath.Path):
        # Which takes its time, when it is wanted. Its SummaryWriter hands events to a
        # thread, for which its flush does not wait: here they are written at once.
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2, summary_pb2

        self._make = event_file_writer.EventsWriter
        self._events, self._summary = event_pb2, summary_pb2.Summary
        self._folder, self._files = folder, {}
        self._flushed = time.monotonic()

    def _write(self, run: str, step: int, **content) -> None:
        """Adds an event to a run's file."""
        if run not in self._files:
            folder = self._folder / run
            folder.mkdir(parents=True, exist_ok=True)
            # Of this process; a run's files are read in the order of their names.
            name = f".{time.time_ns()}"
            self._files[run] = self._make(str(folder / "events"), name)
        event = self._events.Event(wall_time=time.time(), step=step, **content)
        self._files[run].write_event(event)

    def _scalars(self, run: str, step: int, values: dict[str, float]) -> None:
        value = self._summary.Value
        drawn = [value(tag=name, simple_value=v) for name, v in values.items()]
        self._write(run, step, summary=self._summary(value=drawn))

    def on_start(self, stage: str, update: int) -> None:
        """Voids what an earlier process wrote of the stage beyond an update."""
        log = self._events.SessionLog
        self._write(stage, update + 1, session_log=log(status=log.START))

    def on_metrics(self, entry: dict) -> None:
        """Draws a line of metrics."""
        self._scalars(entry["stage"], entry["update"], _numbers(entry))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def on_row(self, entry: dict, samples: np.ndarray) -> None:
        """Draws a row's figures, and its samples if they can be shown."""
        run, steps = f"rows/{series_of(entry)}", entry["num_steps"]
        self._scalars(run, steps, entry["metrics"])
        if (png := self._grid(samples)) is not None:
            height, width, channels = _pixels(png).shape
            image = self._summary.Image(
                height=height,
                width=width,
                colorspace=channels,
                encoded_image_string=png,
            )
            value = self._summary.Value(tag="samples", image=image)
            self._write(run, steps, summary=self._summary(value=[value]))
        self.flush()

    def flush(self) -> None:
        """Writes what is held."""
        for file in self._files.values():
            file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


class WeightsAndBiases(_Samples):
    """One run at Weights & Biases, gone on with when the run here is.

    Lines of updates that are done again after a kill are there twice: it cannot forget.
    """

    def __init__(self, project: str, name: str, workdir: epath.Path, config: dict):
        try:
            import wandb
        except ImportError as error:
            raise Refused(
                f'run.wandb="{project}": package wandb cannot be imported ({error}): '
                "pip install 'pd_jax[wandb]'"
            ) from error
        self._package = wandb
        self._given = dict(project=project, name=name, config=config)
        self._workdir, self._opened = workdir, None

    @property
    def _run(self):
        """The run, begun or gone on with when first needed: its id is in the folder."""
        if self._opened is None:
            place = self._workdir / "wandb_id"
            if not place.exists():
                write_whole(place, secrets.token_hex(4))
            given = self._given | {"id": place.read_text().strip(), "resume": "allow"}
            if not is_remote(self._workdir):
                given["dir"] = str(self._workdir)
            self._opened = self._package.init(**given)
        return self._opened

    def on_start(self, stage: str, update: int) -> None:
        """Has the stage's figures drawn against its own updates."""
        self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/update")

    def on_metrics(self, entry: dict) -> None:
        """Draws a line of metrics."""
        shown = _numbers(entry) | {"update": entry["update"]}
        self._run.log({f"{entry['stage']}/{k}": v for k, v in shown.items()})

    def on_row(self, entry: dict, samples: np.ndarray) -> None:
        """Draws a row's figures, and its samples if they can be shown."""
        group = f"rows/{series_of(entry)}"
        self._run.define_metric(f"{group}/*", step_metric=f"{group}/num_steps")
        shown = entry["metrics"] | {"num_steps": entry["num_steps"]}
        if (png := self._grid(samples)) is not None:
            shown["samples"] = self._package.Image(_pixels(png))
        self._run.log({f"{group}/{k}": v for k, v in shown.items()})

    def close(self) -> None:
        """Ends the run there, as far as this process goes."""
        if self._opened is not None:
            self._opened.finish()
