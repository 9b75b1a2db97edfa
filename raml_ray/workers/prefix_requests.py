"""L-hat with one engine request per prefix: the released notebook's way, slow and simple, that the probe is held against."""

from collections.abc import Sequence

import numpy as np

from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers.engine import Engine


def answer_nll(engine: Engine, token_ids: Sequence[int], lengths: Sequence[int], suffix: AnswerSuffix) -> np.ndarray:
    """L-hat after each of the prefixes of these lengths, (K,), nats per answer token; prompt log-probabilities use no
    prefix cache, so the work grows with the square of the text.

    Raises: ValueError if a prefix with the suffix exceeds engine.max_model_len.

    Source: RaML's pseudo_gradient_descent notebook; the answer's tokens are found by offsets instead of by tokenising it
    alone.
    """
    sequences = [[*token_ids[:length], *suffix.token_ids] for length in lengths]
    is_answer_S = np.array(suffix.is_answer)
    logprobs = [found[-len(is_answer_S) :][is_answer_S] for found in engine.token_logprobs(sequences)]
    return -np.array([answer_A.mean() for answer_A in logprobs], dtype=np.float32)
