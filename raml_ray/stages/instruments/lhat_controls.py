"""Which texts and answers are probed for one trajectory: what the paper asks, and what it has to be held against.

gold      the right answer along the trajectory
foil      wrong answers of as many tokens along it, from the same branches
own       of a wrong trajectory the answer that it gives, along it
shuffled  the right answer along the same trajectory with its lines in another order
foreign   the right answer along a trajectory of another question
spliced   that one again, with the bare answer written into it where the trajectory writes it
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from raml_ray import records
from raml_ray.config import Config
from raml_ray.records import Verdict
from raml_ray.stages.instruments import chosen
from raml_ray.stages.instruments.chosen import Opened, Row
from raml_ray.text import baselines, foils, leak
from raml_ray.text.answers import EXTRACTED_CHARS
from raml_ray.text.suffix import answer_suffix
from raml_ray.text.thinking import OPEN
from raml_ray.workers import probe
from raml_ray.workers.probe_text import Probe
from raml_ray.workers.recurrent_forms import context_of

GOLD, FOIL, OWN, SHUFFLED, FOREIGN, SPLICED = "gold", "foil", "own", "shuffled", "foreign", "spliced"


class Asked(NamedTuple):
    """One text with the answers that are scored along it."""

    names: list[str]
    """Of each answer's curve."""
    answers: list[str]
    leak_positions: list[int | None]
    """Of each answer: response tokens of the first prefix that holds it."""
    positions: list[int]
    """Response tokens of each probed prefix."""
    num_tokens: int
    """Of the whole response."""
    think_position: int
    """Response tokens of the first prefix that holds `<think>`; 0 where the response does not."""
    probe: Probe


def asked(policy: Opened, config: Config, row: Row) -> list[Asked]:
    """The trajectory with its answers first, then the controls that it has.

    A control is left out where there is none to have: no other question, nothing to shuffle, no answer written that could be
    spliced in, or a text beyond the policy's context.

    Raises: ValueError if the trajectory itself cannot be probed.
    """
    prompt_ids, response_ids = chosen.token_ids(policy.tokenizer, row, config.prompt)
    text = _Text(policy, config, prompt_ids)
    gold = text.asked(response_ids, _answers(policy, config, row))
    probe.check(policy.model, gold.probe)
    found, context = [gold], context_of(policy.model.config)
    for name, other in _others(config, row, gold):
        ids = policy.tokenizer(other.removeprefix(config.prompt.response_prefix), add_special_tokens=False)["input_ids"]
        control = text.asked(list(ids), [(name, row["answer"])])
        if context is None or control.probe.lengths[-1] + _longest(control) <= context:
            found.append(control)
    return found


def _longest(asked: Asked) -> int:
    return max(len(suffix.token_ids) for suffix in asked.probe.suffixes)


def _answers(policy: Opened, config: Config, row: Row) -> list[tuple[str, str]]:
    """Name and text of each answer that is scored along the trajectory itself."""
    own = row["extracted"] or ""
    is_whole = 0 < len(own) < EXTRACTED_CHARS
    has_own = OWN in config.lhat.controls and Verdict(row["verdict"]) is Verdict.WRONG and is_whole
    wrong = foils.foils(
        policy.tokenizer,
        config.analyze.suffix,
        row["answer"],
        num=config.lhat.num_foils,
        others=row["other_answers"],
        avoid=[own] if own else [],
        seed=records.seed_of(config.seed, "foils", row["question_id"]),
    )
    return [(GOLD, row["answer"]), *((FOIL, foil) for foil in wrong), *([(OWN, own)] if has_own else [])]


def _others(config: Config, row: Row, gold: Asked) -> Iterator[tuple[str, str]]:
    """Name and text of each control that is a text of its own."""
    until, controls, foreign = config.analyze.until, config.lhat.controls, row["foreign_text"]
    if SHUFFLED in controls:
        body, end = _cut(row["text"], until)
        seed = records.seed_of(config.seed, "shuffled", row["trajectory_id"])
        if (text := baselines.shuffled(body, seed)) is not None:
            yield SHUFFLED, text + end
    if foreign is None:
        return
    if FOREIGN in controls:
        yield FOREIGN, foreign
    leak_position = gold.leak_positions[0]
    if SPLICED in controls and leak_position is not None and leak_position <= gold.positions[-1]:
        body, end = _cut(foreign, until)
        yield SPLICED, baselines.spliced(body, row["answer"], leak_position / gold.positions[-1]) + end


def _cut(text: str, until: str) -> tuple[str, str]:
    """What is probed of the text but for the text that ends it, and the rest."""
    place = text.find(until) if until else -1
    return (text, "") if place < 0 else (text[:place], text[place:])


class _Text:
    """Makes probes of responses to one prompt."""

    def __init__(self, policy: Opened, config: Config, prompt_ids: Sequence[int]) -> None:
        self._tokenizer, self._settings, self._prompt_ids = policy.tokenizer, config.analyze, prompt_ids

    def asked(self, response_ids: list[int], answers: Sequence[tuple[str, str]]) -> Asked:
        """Those answers after 0 .. n response tokens, n being where analyze.until ends, or all of the response."""
        until, stride = self._settings.until, self._settings.stride
        leaks = [leak.position(self._tokenizer, response_ids, answer) for _, answer in answers]
        end = leak.position_of_text(self._tokenizer, response_ids, until) if until else None
        last = len(response_ids) if end is None else end
        at_leak = {leaks[0] - 1, leaks[0]} if leaks[0] is not None else set()
        positions = sorted({*range(0, last + 1, stride), last, *(place for place in at_leak if 0 <= place <= last)})
        suffixes = [answer_suffix(self._tokenizer, self._settings.suffix, answer) for _, answer in answers]
        lengths = [len(self._prompt_ids) + position for position in positions]
        asked = Probe([*self._prompt_ids, *response_ids[:last]], lengths, suffixes)
        names, texts = zip(*answers, strict=True)
        opened = leak.position_of_text(self._tokenizer, response_ids, OPEN) or 0
        return Asked(list(names), list(texts), leaks, positions, len(response_ids), opened, asked)
