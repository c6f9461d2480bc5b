"""What a run's folder holds of its finished stages: weights and facts, read back."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from pd_jax import config as configs
from pd_jax import models
from pd_jax.checkpoint import Damaged, StageCheckpoints
from pd_jax.config.setup import Setup
from pd_jax.runtime.errors import Refused
from pd_jax.training.method import state_shapes
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TEACHER, TrainState
from pd_jax.training.training import Training


class Stages:
    """The stages of one run, as its folder has them."""

    def __init__(self, setup: Setup, workdir: epath.Path):
        self._setup, self._workdir = setup, workdir

    def open(self, stage: Stage) -> StageCheckpoints:
        """A stage's checkpoints, to be closed."""
        return StageCheckpoints(self._workdir, stage)

    def shapes(self, training: Training, stage: Stage) -> TrainState:
        """A stage's state as shapes, on all devices of all processes."""
        same = NamedSharding(training.step.mesh, PartitionSpec())
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=same),
            state_shapes(training.method, stage, self._setup.shapes),
        )

    def given(self, training: Training, stage: Stage) -> dict[str, Any]:
        """What a stage begins with: weights by name, "model" and "teacher" among them.

        Raises:
          Refused: as `handed_over`.
        """
        stages = self._setup.stages
        place = stages.index((training, stage))
        first = stage is training.stages[0]
        if first and training.init == "fresh":
            weights = {MODEL: self._setup.fresh_weights(training.start_key)}
        elif first and training.init:
            weights = self.result(training.init)
        elif place:
            weights = self.handed_over(*stages[place - 1])
        else:
            weights = {MODEL: self._setup.first_weights()}
        if training.taught_by:
            return weights | {TEACHER: self.result(training.taught_by)[MODEL]}
        if first and training.init:
            before = self.handed_over(*stages[place - 1]) if place else None
            teacher = before[MODEL] if before else self._setup.first_weights()
            return weights | {TEACHER: teacher}
        return {TEACHER: weights[MODEL]} | weights

    def result(self, name: str) -> dict[str, Any]:
        """What a training hands over at its end; first weights where none took place.

        Raises:
          Refused: as `handed_over`.
        """
        for training in self._setup.trainings:
            if training.name == name:
                return self.handed_over(training, training.stages[-1])
        return {MODEL: self._setup.first_weights()}

    def handed_over(self, training: Training, stage: Stage) -> dict[str, Any]:
        """What a finished stage hands over, by name.

        Raises:
          Refused: where the stage is not finished, is damaged, or is another run's.
        """

        def read(checkpoints):
            self.check(checkpoints)
            return checkpoints.handed_over(
                self.shapes(training, stage), training.method
            )

        return self._finished(stage, read)

    def facts(self, stage: Stage) -> dict:
        """What a finished stage's checkpoint says of itself; Refused as `weights`."""
        return self._finished(stage, StageCheckpoints.facts)

    def sampler(self, stage: Stage) -> dict:
        """What sampling from a stage's weights takes, to keep beside them."""
        config, (name, dataset) = self._setup.config, self._setup.data_of(stage)
        own = config.model.name == configs.GIVEN
        return {
            **({"function": self._function()} if own else {}),
            "num_steps": stage.num_steps,  # 0: trained for every time
            "clip": config.eval.clip,
            "schedule": config.schedule.to_dict(),
            "model": config.model.to_dict(),
            "data": {
                "name": name,
                "shape": list(dataset.shape),
                "kind": self._setup.space.kind,
                "examples": len(dataset),
            },
        }

    def label_counts(self, training: Training, stage: Stage, done: int) -> dict:
        """{"label_counts": how often the data had each label by an update}, if any."""
        classes = getattr(self._setup.model.network, "num_classes", 0)
        counts = None
        if classes > 1:
            place = done * training.batch, (*training.seed, stage.index)
            counts = self._setup.data_of(stage)[1].label_counts(*place)
        return {} if counts is None else {"label_counts": counts.tolist()}

    def _function(self) -> dict:
        """What loading must know of a caller's own network, beside the function."""
        leaves = jax.tree_util.tree_leaves_with_path(self._setup.shapes)
        name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
        return {
            "num_classes": self._setup.model.network.num_classes,
            "weights": {name(path): list(leaf.shape) for path, leaf in leaves},
        }

    def check(self, checkpoints: StageCheckpoints) -> None:
        """Refuses a checkpoint of another network, data set or config."""
        facts, mine = checkpoints.facts(), self.sampler(checkpoints.stage)
        saved = {key: facts.get(key, value) for key, value in mine.items()}
        # Of a version that knew no kinds.
        saved["data"] = {"kind": mine["data"]["kind"]} | saved["data"]
        if "function" in mine:  # a stream's classes were not all known at first
            least, own = (f["function"]["num_classes"] for f in (saved, mine))
            known = {"num_classes": own} if 0 < least <= own else {}
            saved["function"] = saved["function"] | known
        name = saved["model"].get("name")
        if name in models.known():  # fields that came later are as by default
            saved["model"] = models.fields(name) | saved["model"]
        changed = configs.differences(saved, mine)
        if changed:
            raise Refused(
                f"{checkpoints.newest} belongs to another run:\n  "
                + "\n  ".join(changed)
                + "\nPut back what was there, or use another folder with --workdir=DIR."
            )
        if counts := facts.get("label_counts"):
            self._setup.data_of(checkpoints.stage)[1].recall(np.array(counts))

    def lost(self, stage: Stage, error: Damaged) -> Refused:
        """The end of a stage that others came from: nothing here can replace it."""
        return Refused(
            f"{error}. It is the end of {stage.name}, which others have learnt from or "
            "were measured with: put that folder back from a copy; or move "
            f"checkpoints/{stage.name}, the stages after it and evaluation/ out of "
            f"{self._workdir}, to make them again"
        )

    def _finished(self, stage: Stage, read: Callable) -> Any:
        """What `read` finds in a finished stage's checkpoints."""
        with self.open(stage) as checkpoints:
            if not checkpoints.finished:
                raise Refused(f"{self._workdir}: {stage.name} is not finished")
            try:
                return read(checkpoints)
            except Damaged as error:
                raise self.lost(stage, error) from error
