"""What both training loops do about optimizer steps that were left out, since loss or gradient were not finite."""

from collections.abc import Callable, Mapping, Sequence

from raml_ray.settings import TrainConfig
from raml_ray.text.batches import Example
from raml_ray.workers.arrival import Refused
from raml_ray.workers.sharding import Sharded

Report = Callable[[int, Mapping[str, float]], None]
"""Takes the number of steps done and the step's metrics; called on every rank with the same values."""
Save = Callable[[int], None]
"""Takes the number of steps done; called on every rank."""
Keep = Callable[[int, Sequence[Example], Mapping[str, float]], None]
"""Takes the number of the step that was left out, this rank's share of its batch, and its loss and gradient norm."""


class Guard:
    """Ends a loop that leaves out too many steps, and keeps it from checkpoints right behind such a step."""

    def __init__(self, policy: Sharded, limits: TrainConfig, save: Save) -> None:
        self._policy, self._limits, self._save = policy, limits, save
        self._seen = policy.updates.skipped
        self._is_due = False

    def check(self, step: int, rate: str) -> None:
        """Raises: arrival.Refused, on all ranks, if train.max_skipped_in_a_row optimizer steps in a row were left out, or
        more than these and than train.max_skipped_fraction of all.

        `rate` names the learning rate: `grpo.learning_rate=0.1`.
        """
        updates, most = self._policy.updates, self._limits.max_skipped_in_a_row
        if updates.skipped_in_a_row >= most:
            many = f"{updates.skipped_in_a_row} updates in a row"
        elif updates.skipped > max(most, self._limits.max_skipped_fraction * updates.asked):
            many = f"{updates.skipped} of {updates.asked} updates"
        else:
            return
        raise Refused(
            f"{rate}: {many} up to step {step} had no finite loss and gradient; lower it, or"
            f" train.grad_clip={self._limits.grad_clip:g}, and look at the batches under skipped/ in the step's folder"
        )

    def save(self, step: int, *, is_last: bool) -> None:
        """Save every train.checkpoint_every-th step and the last, or the first one after it that left out nothing."""
        self._is_due |= step % self._limits.checkpoint_every == 0 or is_last
        skipped = self._policy.updates.skipped
        is_whole, self._seen = skipped == self._seen, skipped
        if self._is_due and is_whole:
            self._save(step)
            self._is_due = False
