"""Optax's optimizers and learning-rate schedules, by name."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optax

OPTIMIZERS = ("sgd", "momentum", "adam", "adadelta")
SCHEDULES = ("constant", "cosine", "onecycle")


def make_optimizer(
    name: str, learning_rate: float, steps: int, *, momentum: float = 0.9, schedule: str = "constant"
) -> "optax.GradientTransformation":
    """Return the optimizer of that name.

    Args:
        name: "sgd" (θ ← θ − α ∇L, as in the notes), "momentum" (Nesterov's), "adam" or "adadelta".
        learning_rate: α, the maximum of the schedule.
        steps: the number of steps of the training, the length of the schedules.
        momentum: decay rate of "momentum"; "adam" always uses optax's default b1 = 0.9.
        schedule: "constant"; "cosine", from α to 0; or "onecycle", from α/25 up to α over the first 30% of the steps
            and down to nearly 0.

    Returns:
        An optax gradient transformation.

    Raises:
        ValueError: `name` or `schedule` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = make_optimizer("sgd", 0.5, 100)
        >>> updates, _ = optimizer.update(jnp.array(1.0), optimizer.init(jnp.array(0.0)))
        >>> print(updates)
        -0.5
    """
    import optax  # here, because it is slow to import, and the names alone do not need it

    rates: dict[str, optax.ScalarOrSchedule] = {
        "constant": learning_rate,
        "cosine": optax.cosine_decay_schedule(learning_rate, max(1, steps)),
        "onecycle": optax.cosine_onecycle_schedule(max(1, steps), learning_rate),
    }
    if schedule not in rates:
        raise ValueError(f"`schedule` ({schedule!r}) must be one of {', '.join(SCHEDULES)}")
    rate = rates[schedule]
    if name == "sgd":
        return optax.sgd(rate)
    if name == "momentum":
        return optax.sgd(rate, momentum=momentum, nesterov=True)
    if name == "adam":
        return optax.adam(rate)
    if name == "adadelta":
        return optax.adadelta(rate)
    raise ValueError(f"`name` ({name!r}) must be one of {', '.join(OPTIMIZERS)}")
