"""Samplers at equal numbers of evaluations: the exact ring, RMSE to its exact map.

    python docs/samplers.py

prints the tables of docs/methods.md, in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pd_jax import data, samplers, schedules

NAMES = ("ddim", "ddim@quadratic", "dpmpp_2m", "deis", "pndm", "heun", "heun@karras")
BUDGETS = (8, 16, 32, 64, 128)
TOLERANCES = (0.1, 0.03, 0.01, 0.003, 0.001)


def main() -> None:
    """Prints both tables."""
    denoise = data.get("ring2d").denoise
    z = jnp.asarray(np.random.default_rng(0).standard_normal((4000, 2)))

    def run(method, num_steps):
        draw = jax.jit(samplers.sample, static_argnums=(0, 3, 4, 5, 7))
        given = denoise, z, jnp.int32(num_steps), schedules.get("cosine"), method
        return draw(*given, False, None, True)

    exact = run("heun", 4096)[0]

    def error(x):
        return f"{float(np.sqrt(np.mean(np.square(x - exact)))):.2g}"

    print(f"| evaluations | {' | '.join(map(str, BUDGETS))} |")
    print("|---" + "|---:" * len(BUDGETS) + "|")
    for name in NAMES:
        each = samplers.get(name).evaluations
        errors = [error(run(name, budget // each)[0]) for budget in BUDGETS]
        print(f"| `{name}` | {' | '.join(errors)} |")
    print("\n| tolerance | RMSE | evaluations: mean | least | most |")
    print("|---:|---:|---:|---:|---:|")
    for tolerance in TOLERANCES:
        x, asked = run(f"adaptive:{tolerance}", 1)
        counts = f"{np.mean(asked):.1f} | {np.min(asked)} | {np.max(asked)}"
        print(f"| {tolerance} | {error(x)} | {counts} |")


if __name__ == "__main__":
    with jax.enable_x64(True):  # float32 alone is 0.0035 off, by paths that part
        main()
