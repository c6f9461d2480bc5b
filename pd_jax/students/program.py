"""Students that sample by the program in their bundle, in place of a network."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pd_jax.runtime import numerics
from pd_jax.runtime.errors import Refused
from pd_jax.students import bundle
from pd_jax.students.student import Student


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ProgramStudent(Student):
    """A student without a network: its bundle's program draws, on one device.

    The program is code of whoever wrote the file.

    Attributes:
      serialized: the bytes of `jax.export`, as `Student.program` returns them.
    """

    serialized: bytes = b""

    def steps(self, num_steps: int | None, force: bool = False) -> int:
        """The program's own step count; Refused for any other."""
        return super().steps(num_steps)

    @functools.cached_property
    def _placed(self) -> tuple[NamedSharding, Student]:
        mesh = Mesh(np.array(jax.local_devices()[:1]), ("batch",))
        return NamedSharding(mesh, PartitionSpec()), self

    @functools.cached_property
    def _call(self) -> Callable:
        return jax.jit(export.deserialize(bytearray(self.serialized)).call)

    @numerics.pinned()
    def draw(
        self,
        key: jax.Array,
        places: np.ndarray,
        labels: np.ndarray,
        num_steps: int,
        split: NamedSharding,
        sampler: str | None = None,
    ) -> jax.Array:
        """A batch of samples, as of `Student.draw`; Refused for another sampler."""
        if not self.is_made_for(sampler):
            raise Refused(f"sampler={sampler}: its program's sampler is {self.sampler}")
        weights = bundle.flatten(self.params)
        given = [
            {bundle.PARAMS + name: array for name, array in weights.items()},
            jax.random.key_data(numerics.threefry(key)),
            places.astype(np.uint32),
            labels.astype(np.int32),
        ]
        x = self._call(*given[: 4 if self.num_classes > 1 else 3])
        # Programs of former versions return pictures as grey levels.
        return x / 127.5 - 1.0 if x.dtype == jnp.uint8 else x
