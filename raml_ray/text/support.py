"""Which verified trajectories become the SFT set: the support set of each question, padded to equal weight."""

import random
from collections.abc import Sequence


def choose(labels: Sequence[Sequence[bool]], num_trajectories: int, pad_to: int, seed: int) -> list[tuple[int, int]]:
    """(question index, trajectory index) of every SFT example, shuffled.

    `labels` says, per question and in sample order, which trajectories are correct. Of a question's first `pad_to`
    trajectories the first `num_trajectories` correct ones are taken, then resampled from until the question has as many
    examples as it has correct ones among those: the set's size and each question's weight do not depend on
    `num_trajectories`, only the number of distinct trajectories does. Questions without a correct one vanish.

    Raises: ValueError if num_trajectories is outside [1, pad_to].

    Source: RaML's data_process_sft.py; arXiv:2505.19815, Fig. 8.
    """
    if not 1 <= num_trajectories <= pad_to:
        raise ValueError(
            f"sft.num_trajectories={num_trajectories} must be in [1, sft.pad_to={pad_to}]: "
            "only the trajectories that are counted can be chosen"
        )
    generator = random.Random(seed)
    examples: list[tuple[int, int]] = []
    for question, row in enumerate(labels):
        correct = [(question, index) for index, label in enumerate(row[:pad_to]) if label]
        chosen = correct[:num_trajectories]
        examples += chosen
        examples += [generator.choice(chosen) for _ in range(len(correct) - len(chosen))]
    generator.shuffle(examples)
    return examples
