"""What linear probes read of partial results, in one domain and another, and the policy without it.   judged trajectories,
policy -> states/, subspaces.parquet, projected/responses/

States before partial results come first, then probes of every layer, each trained on some questions of one domain. The
other questions are answered greedily while the subspace that a probe reads is taken out of its layer's output, and while
random ones of equal rank are (the paper's third open question, section 4.3).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raml_ray.config import Config, ConfigError
from raml_ray.miniature import results as of_miniature
from raml_ray.records import Question, Verdict
from raml_ray.settings import MINIATURE_RESULTS, FeaturesConfig
from raml_ray.stages import judging
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.instruments import chosen, features_figures, features_probes
from raml_ray.stages.instruments.chosen import Opened, Row
from raml_ray.stages.instruments.features_probes import BLOCK
from raml_ray.text import leak, prompts, results, roles
from raml_ray.workers import greedy, residual_stream
from raml_ray.workers.pseudo_update import evenly
from raml_ray.workers.recurrent_forms import context_of

COLUMNS = pa.schema([*chosen.CHOSEN, ("domain", pa.string())])
STATES = chosen.Table(
    "states",
    pa.schema(
        [
            *((name, pa.string()) for name in ("trajectory_id", "question_id", "domain", "result")),
            ("position", pa.int32()),
            ("class", pa.int32()),
            ("layers", pa.list_(pa.int32())),
            ("state", pa.binary()),
        ]
    ),
)
"""A partial result as it is written, the response tokens before it, its class, and the output of `layers` at the last token
before it: float32, layer after layer."""
RESPONSES = chosen.Table(
    "responses",
    pa.schema(
        [
            *((name, pa.string()) for name in ("block", "subspace", "domain", "question_id", "text", "verdict")),
            ("layer", pa.int32()),
        ]
    ),
    key="block",
    rows_per_shard=1,
    inside="projected",
)
"""A greedy response, and from which layer which subspace was taken out meanwhile (`none`: nothing)."""
TOGETHER = 32
"""Questions that are answered side by side."""


def run(context: Context) -> Outcome:
    settings = context.config.features
    rows = [row for row in chosen.trajectories(context, _domain_of(settings)) if _is_wanted(row, settings)]
    if not rows:
        raise ConfigError(
            f"step {context.step.name!r}: its data has no trajectory of features.domains={settings.domains}"
        )
    read = chosen.mapped(context, rows, States, STATES, COLUMNS)
    trained = features_probes.trained(context, rows, read.rows)
    context.folder.write_table("subspaces.parquet", trained.subspaces)
    answered = chosen.mapped(context, trained.blocks, Projected, RESPONSES, BLOCK)
    num_rejected = read.num_rejected + answered.num_rejected
    num_rows = len(rows) + len(trained.blocks)
    figures = trained.figures | features_figures.projected(answered.rows, context.config.seed)
    return Outcome(Counts(num_rows, num_rows - num_rejected, num_rejected), figures)


def _domain_of(settings: FeaturesConfig) -> Any:
    def domain(question: Question) -> str:
        value = getattr(question, settings.by)
        return "" if value is None else str(value)

    return domain


def _is_wanted(row: Row, settings: FeaturesConfig) -> bool:
    return not settings.domains or row["domain"] in settings.domains


class States(chosen.RowByRow):
    """Reads the output of layers before the partial results of trajectories."""

    def __init__(self, policy: Opened, config: Config) -> None:
        greedy.check(policy.model)  # states alone could be read, but for answers that nobody can give
        self._policy, self._config = policy, config
        self._layers = residual_stream.layers(policy.model, config.features.layers)

    def of(self, row: Row) -> Iterable[Row]:
        """A row per partial result. Raises: ValueError if there is none, or the trajectory exceeds the policy's context."""
        model, tokenizer = self._policy
        settings, until = self._config.features, self._config.analyze.until
        prompt_ids, response_ids = chosen.token_ids(tokenizer, row, self._config.prompt)
        last = leak.position_of_text(tokenizer, response_ids, until) if until else None
        found = self._results(response_ids[:last])
        if not found:
            raise ValueError(f"no whole number that features.results={settings.results!r} finds")
        picked = [found[index] for index in evenly(0, len(found) - 1, settings.num_results)]
        ids = [*prompt_ids, *response_ids[: picked[-1][0]]]
        context = context_of(model.config)
        if context is not None and len(ids) > context:
            raise ValueError(f"{len(ids)} tokens exceed the policy's context of {context}")
        before = [len(prompt_ids) + position - 1 for position, _, _ in picked]
        state_LKD = residual_stream.states(model, self._layers, ids, before)
        head = {name: row[name] for name in ("trajectory_id", "question_id", "domain")}
        for index, (position, text, number) in enumerate(picked):
            yield head | {
                "result": text,
                "position": position,
                "class": number % settings.num_classes,
                "layers": list(self._layers),
                "state": state_LKD[:, index].numpy().astype(np.float32).tobytes(),
            }

    def _results(self, ids: list[int]) -> list[tuple[int, str, int]]:
        """Of each partial result that is a whole number the tokens before it, its text and its value."""
        text, spans_T = roles.token_spans(self._policy.tokenizer, ids)
        rule = self._config.features.results
        places = of_miniature.spans(text) if rule == MINIATURE_RESULTS else results.spans(text, rule)
        written = ((results.token_at(spans_T, start), text[start:end]) for start, end in places)
        numbers = ((position, text, results.whole_number(text)) for position, text in written)
        return [(position, text, number) for position, text, number in numbers if number is not None]


class Projected(chosen.RowByRow):
    """Answers questions while a subspace is taken out of a layer's output, and has the answers judged."""

    def __init__(self, policy: Opened, config: Config) -> None:
        greedy.check(policy.model)
        self._policy, self._config = policy, config
        self._layers = residual_stream.layers(policy.model, config.features.layers)
        self._stops = greedy.stop_token_ids(policy.model, policy.tokenizer)
        self._judges = judging.pool(config.verify, config.data)

    def of(self, row: Row) -> Iterable[Row]:
        """A row per question. Raises: ValueError if a prompt leaves no room for an answer in the policy's context."""
        questions = row["questions"]
        if row["layer"] is None:
            texts = self._texts(questions)
        else:
            basis_DR, mean_D = features_probes.unpacked(row)
            with residual_stream.projected(self._layers[row["layer"]], basis_DR, mean_D):
                texts = self._texts(questions)
        asked = [(question["answer"], text) for question, text in zip(questions, texts, strict=True)]
        judgements = self._judges.judge(asked, pattern=self._config.verify.answer_pattern)
        head = {name: row[name] for name in ("block", "subspace", "domain", "layer")}
        for question, text, judgement in zip(questions, texts, judgements, strict=True):
            verdict = Verdict(judgement.verdict).value
            yield head | {"question_id": question["question_id"], "text": text, "verdict": verdict}

    def _texts(self, questions: Sequence[Row]) -> list[str]:
        model, tokenizer = self._policy
        prompt, most = self._config.prompt, self._config.features.max_tokens
        asked = [prompts.prompt_token_ids(tokenizer, question["problem"], prompt) for question in questions]
        found: list[str] = []
        for start in range(0, len(asked), TOGETHER):
            ids = greedy.responses(model, asked[start : start + TOGETHER], self._stops, max_tokens=most)
            found += [prompts.response_text(tokenizer, each, prompt, self._stops) for each in ids]
        return found
