"""What is learnt: one training objective a file, found by name.

A method's file defines `Method`, a frozen dataclass built from a model, a schedule and
a `Descent`, with

    start(weights, stage) -> state     a stage's first state; `weights` are what the
                                       stage before handed over, or fresh ones
    loss(state, params, batch, keys, dropout_key=None) -> [B]
                                       of `params` with the state's teacher and stage;
                                       dropout only where its key is given
    update(state, batch, keys) -> (state, metrics)
                                       pure; per device, axis "batch"; one key per
                                       example; state.step grows by one; metrics as
                                       from `optim.Descent.update`, or more
    result(state) -> weights           the part of it that a finished stage hands over

The state is the method's own pytree with fields `step`, `stage` and `teacher`: a method
with a self-average or a second network and optimiser adds them there. Numbers that
change from stage to stage come from `state.stage`, traced, never from Python: that is
what makes one compiled update serve a whole ladder.

A method keeps its optimiser, an `optim.Descent`, as `descent`. Two class attributes:
`needs_teacher` says whether a method distils, as the ladder's does and the teacher's
does not; `forwards` counts network evaluations per example and update, a backward pass
as two.
"""

import sys

from pd_jax.runtime import registry


def known(needs_teacher: bool | None = None) -> list[str]:
    """The methods' names: all, or those that do, or do not, learn from a teacher."""
    found = registry.members(sys.modules[__name__])
    if needs_teacher is None:
        return found
    return [name for name in found if get(name).needs_teacher == needs_teacher]


def get(name: str) -> type:
    """The class `Method` of the method called `name`; ValueError lists the known."""
    return registry.member(sys.modules[__name__], name, "method").Method
