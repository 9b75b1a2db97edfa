"""Instruments that have engines answer: what is sampled behind what, what it comes to, and what the page shows."""

import json
from pathlib import Path
from typing import Any

import pytest

from raml_ray import records
from raml_ray.config import Config, ConfigError, Step, override
from raml_ray.miniature import tokenizer as miniature
from raml_ray.settings import PromptConfig
from raml_ray.stages import context, needs, report_summaries, verify
from raml_ray.stages.instruments import chosen, interventions, modes, shorter, summaries
from raml_ray.stages.instruments.answers import Answer
from raml_ray.stages.report_outcomes import Claim
from raml_ray.text import prompts, thinking
from raml_ray.workers.answer_loss import answer_loss
from tests.stages import contexts
from tests.stages.test_analyze import row as made
from tests.stages.test_instruments import TEXT, analyzed, finished, panels, shown
from tests.stages.test_verify import oracle, verifying

TOKENIZER = miniature.build()
CUT = "\n</think>\n\n**Final Answer**\n\\boxed{"


def row(text: str = TEXT, **changes: Any) -> dict[str, Any]:
    return made(text, forced=None, summaries=[], extracted="16", policy_id="oracle@1") | changes


def text(token_ids: list[int]) -> str:
    return str(TOKENIZER.decode(token_ids))


def test_a_trajectory_is_cut_in_every_mode() -> None:
    config = override(Config(), {"modes.fractions": [0.0, 0.5, 1.0], "modes.budgets": [4, 10, 11]})
    found = {one["mode"]: one for one in modes.Cuts(TOKENIZER, config).of(row())}
    begun = {mode: one["begun_token_ids"] and text(one["begun_token_ids"]) for mode, one in found.items()}
    # <think> \n _ 7 9 \n Wait _ 16 \n </think>
    assert begun == {
        "thinking": None,
        "no_thinking_empty_thought": "<think>\n\n</think>\n\n",
        "no_thinking_conclusion": "Therefore, after all this, I believe the answer is",
        "end_of_thought_0": f"<think>\n{CUT}",
        "end_of_thought_0.5": "<think>\n _ 7 9" + CUT,
        "end_of_thought_1": "<think>\n _ 7 9\nWait _ 16" + CUT,
        "budget_4": "<think>\n _ 7" + CUT,
        "budget_10": "<think>\n _ 7 9\nWait _ 16" + CUT,
        "budget_11": None,
    }
    assert found["thinking"]["num_tokens"] == found["budget_11"]["num_tokens"] == len(thinking.encode(TOKENIZER, TEXT))


def test_a_trajectory_that_was_forced_is_no_thinking_left_alone() -> None:
    with pytest.raises(ValueError, match="put there"):
        list(modes.Cuts(TOKENIZER, Config()).of(row(forced=[{"start": 3, "end": 5}])))


def outcome(question: str, mode: str, accuracy: float | None, tokens: float, *, forced: bool = True) -> modes.Shown:
    return modes.Shown(question, "correct", mode, accuracy, tokens, forced)


def test_modes_are_means_over_questions_and_held_against_thinking_by_question() -> None:
    outcomes = [
        outcome("a", "thinking", 1.0, 20, forced=False),
        outcome("a", "thinking", 1.0, 40, forced=False),
        outcome("b", "thinking", 0.0, 10, forced=False),
        outcome("a", "budget_8", 0.5, 12),
        outcome("a", "budget_8", 0.0, 14),
        outcome("b", "budget_8", 0.25, 9, forced=False),
        outcome("c", "budget_8", None, 9),
    ]
    found = modes.figures(outcomes, 0)
    assert found["thinking"]["tokens"]["mean"] == pytest.approx((30 + 10) / 2)
    assert found["thinking"]["thinking_lead"] is None
    budget = found["budget_8"]
    # c could not be judged: it has tokens and no accuracy
    assert (budget["questions"], budget["forced"]) == (2, 0.75)
    assert budget["accuracy"]["mean"] == pytest.approx((0.25 + 0.25) / 2)
    assert budget["tokens"]["mean"] == pytest.approx((13 + 9 + 9) / 3)
    assert budget["thinking_lead"]["mean"] == pytest.approx(((1.0 - 0.25) + (0.0 - 0.25)) / 2)


def test_trajectories_that_were_drawn_otherwise_are_refused(tmp_path: Path) -> None:
    step = Step(name="modes", stage="analyze", overrides={"analyze.instrument": "modes"})
    asked = contexts.context(tmp_path / "run", step)
    own = f"sft@{modes.policies.policy_id(asked.policy_path, '').partition('@')[2]}"

    def drawn(temperature: float) -> dict[str, Any]:
        sampling = {"temperature": temperature, "top_p": 1.0, "top_k": -1, "max_tokens": 9, "stop_token_ids": [1]}
        return row(policy_id=own, sampling=json.dumps(sampling))

    assert modes._own(asked, [drawn(0.6), row()]) == 1
    with pytest.raises(
        ConfigError, match=r"temperature=1\.0, and answers would be with 0\.6: .*; set answers\.temperature"
    ):
        modes._own(asked, [drawn(1.0)])


SENTENCES = "<think>\n _ 7 9\nWait _ 16\n _ 1\n</think>\n\n**Final Answer**\n\\boxed{16}"
"""Three lines of four, four and three tokens."""


def test_ways_fill_the_same_budget_with_whole_sentences() -> None:
    config = override(Config(), {"shorter.ways": ["truncation", "random"], "shorter.fractions": [0.75]})
    found = {one["way"]: one for one in shorter.Ways(TOKENIZER, config).of(row(SENTENCES))}
    kept = {way: text(one["begun_token_ids"]).removesuffix(CUT) for way, one in found.items()}
    assert kept["whole"] == "<think>\n _ 7 9\nWait _ 16\n _ 1"
    assert kept["none"] == "<think>\n"
    # eight of eleven tokens
    assert kept["truncation"] == "<think>\n _ 7 9\nWait _ 16"
    # without one line of four, or without the one of three
    assert found.pop("random")["num_thinking"] in (7, 8)
    assert [one["num_thinking"] for one in found.values()] == [11, 0, 8]
    assert {way: one["holds_answer"] for way, one in found.items()} == {
        "whole": True,
        "none": False,
        "truncation": True,
    }


def test_a_summary_is_cut_to_the_budgets_and_every_way_to_the_length_of_each_summary() -> None:
    config = override(Config(), {"shorter.ways": ["truncation"], "shorter.fractions": [0.75]})
    summaries = ["7 and 9. Add.", None, "Add."]
    found = list(shorter.Ways(TOKENIZER, config).of(row(SENTENCES, summaries=summaries)))
    # Of the first summary's two sentences one has seven tokens, and both have twelve: with eight of eleven there is room
    # for the one, and for all of the trajectory's eleven with twelve.
    assert [(one["way"], one["budget"], one["draw"], one["num_thinking"]) for one in found] == [
        ("whole", "1", 0, 11),
        ("none", "0", 0, 0),
        ("truncation", "0.75", 0, 8),
        ("summary", "0.75", 0, 7),
        ("summary", "summary", 0, 12),
        ("truncation", "summary", 0, 11),
        ("summary", "0.75", 2, 4),
        ("summary", "summary", 2, 4),
        ("truncation", "summary", 2, 4),
    ]
    kept = [text(one["begun_token_ids"]).removesuffix(CUT).removeprefix("<think>\n") for one in found]
    assert kept[3:5] + kept[-2:] == ["7 and 9.", "7 and 9. Add.", "Add.", " _ 7 9"]
    assert not found[3]["holds_answer"]


def test_a_trajectory_that_does_not_think_cannot_be_shortened() -> None:
    with pytest.raises(ValueError, match="nothing to shorten"):
        list(shorter.Ways(TOKENIZER, Config()).of(row("<think>\n</think>\n\n**Final Answer**\n\\boxed{16}")))


def test_sentences_without_which_the_answer_stays_likeliest_go_first(tmp_path: Path) -> None:
    config = override(Config(), {"shorter.ways": ["lhat"], "shorter.fractions": [0.4]})
    policy = chosen.opened(contexts.policy(tmp_path / "policy"), config)
    ways = shorter.GuidedWays(policy, config)
    prompt_ids, ids = chosen.token_ids(policy.tokenizer, row(SENTENCES), config.prompt)
    thought = thinking.thought(policy.tokenizer, ids, CUT)
    asked = shorter.suffix.answer_suffix(policy.tokenizer, shorter.suffix.NAMED["paper"], "16")

    def lhat(*lines: str) -> float:
        left = thinking.encode(policy.tokenizer, "".join(("<think>\n", *lines)))
        return answer_loss(policy.model, [*prompt_ids, *left], asked).item()

    first, second, third = " _ 7 9\n", "Wait _ 16\n", " _ 1\n"
    worth = [lhat(second, third), lhat(first, third), lhat(first, second)]
    order = ways.orders(row(SENTENCES), prompt_ids, thought)["lhat"]
    assert order == sorted(range(3), key=worth.__getitem__)
    # two of three lines exceed the four tokens: what is left is the one that is worth most
    (found,) = [one for one in ways.of(row(SENTENCES)) if one["way"] == "lhat"]
    assert text(found["begun_token_ids"]) == "<think>\n" + (first, second, third)[order[-1]].removesuffix("\n") + CUT


def shortened(
    trajectory: str, question: str, way: str, budget: str, tokens: int, *, leaks: bool = False, draw: int = 0
) -> chosen.Row:
    names = {"trajectory_id": trajectory, "question_id": question, "group": "correct", "way": way, "budget": budget}
    return names | {"draw": draw, "num_thinking": tokens, "holds_answer": leaks}


def test_ways_are_held_against_truncation_at_the_same_budget() -> None:
    rows = [
        shortened("s", "a", "truncation", "0.5", 10),
        shortened("t", "b", "truncation", "0.5", 20, leaks=True),
        shortened("s", "a", "random", "0.5", 8),
        shortened("t", "b", "random", "0.5", 16),
        shortened("t", "b", "random", "0.25", 4),
    ]
    accuracies = {"s/truncation_0.5_0": 0.5, "t/truncation_0.5_0": 1.0, "s/random_0.5_0": 0.25, "t/random_0.5_0": 0.25}
    answers = {key: Answer(value, 9) for key, value in accuracies.items()}
    found = shorter.figures(shorter.answered(rows, answers, {"s": "near", "t": "near"}), 0)
    cut, drawn = found["truncation"]["0.5"], found["random"]["0.5"]
    assert (cut["accuracy"]["mean"], cut["tokens"]["mean"], cut["holds_answer"]) == (0.75, 15, 0.5)
    assert cut["accuracy_without_answer"]["mean"] == 0.5
    assert drawn["lead_over_truncation"]["mean"] == pytest.approx((-0.25 - 0.75) / 2)
    # behind it nothing was answered
    assert set(found["random"]) == {"0.5"}


def with_accuracy(accuracy: float | None, *names: Any, **more: Any) -> chosen.Row:
    return shortened(*names, **more) | {"set": "near", "accuracy": accuracy}


def test_a_set_is_solved_as_far_as_some_trajectory_is_answered_right_in_a_draw() -> None:
    rows = [
        with_accuracy(1.0, "s", "a", "whole", "1", 20),
        with_accuracy(0.0, "t", "a", "whole", "1", 40),
        with_accuracy(0.0, "u", "b", "whole", "1", 30),
        with_accuracy(1.0, "s", "a", "summary", "summary", 6),
        with_accuracy(0.0, "s", "a", "summary", "summary", 8, draw=1),
        with_accuracy(None, "u", "b", "summary", "summary", 8),
        with_accuracy(1.0, "u", "b", "summary", "0.5", 4),
    ]
    found = shorter.of_sets(rows, 0)["near"]
    assert (found["whole"]["accuracy"]["mean"], found["whole"]["solved"]["mean"]) == (0.25, 0.5)
    # a is solved in one of its two draws; b was not judged, and what is shorter than a summary is none
    assert (found["summary"]["questions"], found["summary"]["solved"]["mean"]) == (1, 0.5)
    assert found["summary"]["tokens"]["mean"] == pytest.approx((7 + 8) / 2)


def claimed(tmp_path: Path, rows: list[chosen.Row]) -> Claim:
    context = contexts.context(tmp_path / "run", Step(name="shorter", stage="analyze"))
    context.folder.write_table(shorter.ANSWERED, records.table(rows, shorter.ANSWERED_ROW))
    return report_summaries.claim(finished(context, {}), context.config)


def test_most_of_the_accuracy_is_kept_where_summaries_keep_more_than_half_of_it(tmp_path: Path) -> None:
    rows = []
    for number in range(12):
        q, s, t = f"q{number}", f"s{number}", f"t{number}"
        rows += [
            with_accuracy(1.0, s, q, "whole", "1", 40),
            with_accuracy(0.5, t, q, "whole", "1", 40),
            with_accuracy(1.0, s, q, "summary", "summary", 8),
            with_accuracy(0.5, s, q, "summary", "summary", 9, draw=1),
            # It holds the answer: neither it nor its trajectory counts.
            with_accuracy(1.0, t, q, "summary", "summary", 9, leaks=True),
            # Shorter than the summary is.
            with_accuracy(0.0, s, q, "summary", "0.25", 4),
            with_accuracy(0.25, s, q, "random", "summary", 8),
            with_accuracy(0.0, s, q, "random", "summary", 9, draw=1),
            with_accuracy(0.0, s, q, "random", "0.25", 4),
            with_accuracy(1.0, s, q, "truncation", "summary", 8),
            # Its answer could not be judged.
            with_accuracy(None, s, q, "truncation", "summary", 9, draw=1),
        ]
    found = claimed(tmp_path, rows)
    assert {one.comparison: one.difference and one.difference.mean for one in found.measurements} == {
        # of a question, mean of 1 - 0.5 and 0.5 - 0.5
        "summary - half of whole": 0.25,
        # 1 - 1, and nothing
        "summary - cut to as many tokens": 0.0,
        # mean of 1 - 0.25 and 0.5 - 0
        "summary - sentences left out at random to as many tokens": 0.625,
    }
    assert [one.decides for one in found.measurements] == [True, False, False]
    assert (found.outcome, found.note) == ("holds", "")
    assert found.measurements[0].num_questions == 12


def test_a_claim_that_holds_says_where_chance_keeps_as_much_and_where_nothing_is_kept(tmp_path: Path) -> None:
    def of(whole: float, summary: float, random: float | None, questions: int = 12) -> Claim:
        rows = []
        for number in range(questions):
            ids = f"s{number}", f"q{number}"
            rows.append(with_accuracy(whole, *ids, "whole", "1", 40))
            rows.append(with_accuracy(summary, *ids, "summary", "summary", 8))
            rows += [] if random is None else [with_accuracy(random, *ids, "random", "summary", 8)]
        return claimed(tmp_path, rows)

    kept = of(1.0, 0.75, 0.75)
    assert kept.outcome == "holds" and "what is cut at random keeps as much" in kept.note
    assert (of(1.0, 0.25, 0.0).outcome, of(1.0, 0.25, 0.0).note) == ("does not hold", "")
    nothing = of(0.02, 0.02, 0.0)
    assert nothing.outcome == "undecided" and "at or near zero on both sides" in nothing.note
    few = of(1.0, 1.0, None, questions=9)
    assert few.outcome == "undecided"
    assert few.note == (
        "questions with a summary that does not hold the answer: 9, fewer than 10: too few to decide; without its control:"
        " shorter.ways does not name random"
    )


def test_summaries_that_say_an_answer_are_left_out_and_counted() -> None:
    rows = [row(trajectory_id=name) for name in "abcde"] + [row(trajectory_id="f", extracted="17")]
    drawn = {("a", 0): "so 16", ("a", 1): "add 7 and 9", ("b", 0): "so 16", ("c", 0): "", ("d", 0): "160"}
    found = summaries.kept(rows, drawn | {("f", 1): "it is 17"}, 2)
    assert found.texts == {("a", 1): "add 7 and 9", ("d", 0): "160"}
    assert found.of_trajectory("a", 2) == [None, "add 7 and 9"]
    assert found.figures == {"asked": 12, "rejected": 6, "empty": 1, "with_answer": 3, "used": 2}


def test_a_summariser_is_given_the_reasoning_as_far_as_it_reads_and_the_question_where_it_is_asked_for() -> None:
    # The question's own braces stay as they are.
    asked = summaries.request("{problem}\n\n{reasoning}\n\n\nSummarise.", "What is {reasoning}?", "7 and 9")
    assert asked == "What is {reasoning}?\n\n7 and 9\n\n\nSummarise."
    assert summaries.beginning(TOKENIZER, "Wait _ 16", 2) == text(TOKENIZER("Wait _ 16")["input_ids"][:2])
    assert [summaries.beginning(TOKENIZER, "Wait _ 16", num) for num in (0, 99)] == ["Wait _ 16"] * 2


def continued(trajectory: str, answered: dict[str, float | None]) -> tuple[chosen.Row, dict[str, Answer]]:
    """A trajectory with one word, and the accuracies of what is continued."""
    cells = [{"word": 0, "cell": cell} for cell in answered]
    return {"trajectory_id": trajectory, "continued": cells}, {
        f"{trajectory}/0/{cell}": Answer(value, 5) for cell, value in answered.items() if value is not None
    }


def test_words_change_the_accuracy_of_continuations_as_they_change_lhat() -> None:
    cells = {"without": 0.5, "own": 1.0, "other_here": 0.25, "newline": 0.5, "without_moved": 0.25, "moved": 0.5}
    one, answered = continued("a", cells | {"other_own": 0.75})
    other, unanswered = continued("b", cells | {"other_own": None})
    config = override(Config(), {"interventions.num_samples": 4})
    found = interventions.accuracies([one, other], answered | unanswered, config)["accuracy"]
    assert (found["num_words"], found["without"]["mean"]) == (1, 0.5)
    assert [found[cell]["mean"] for cell in ("own", "other_here", "moved", "other_own")] == [0.5, -0.25, 0.25, 0.5]
    # (1.0 - 0.25) - (0.5 - 0.75): the places alone cancel
    assert found["interaction"]["mean"] == pytest.approx(1.0)
    assert interventions.accuracies([one], answered, Config()) == {}


def test_places_are_continued_with_and_without_the_word(tmp_path: Path) -> None:
    changes = {"interventions.neutral": ["re: _"], "interventions.num_words": 1, "interventions.num_samples": 2}
    config = override(Config(), changes)
    measure = interventions.Interventions(chosen.opened(contexts.policy(tmp_path / "policy"), config), config)
    (found,) = measure.of(row(frequencies="{}"))
    # Wait stands behind the first line, its partner, an empty slot, behind it
    assert {one["cell"]: text(one["token_ids"]).removeprefix("<think>\n _ 7 9\n") for one in found["continued"]} == {
        "without": "",
        "own": "Wait",
        "other_here": " _",
        "newline": "\n",
        "without_moved": "Wait",
        "moved": "WaitWait",
        "other_own": "Wait _",
    }


def test_a_step_reads_and_asks_for_what_its_engines_need() -> None:
    def of(**settings: object) -> Config:
        return override(Config(), {name.replace("__", "."): value for name, value in settings.items()})

    plain, sampling = (of(analyze__instrument="interventions", interventions__num_samples=k) for k in (0, 4))
    assert "engine" not in context.reads(plain, "analyze")
    assert set(context.ANSWER_READS) <= set(context.reads(sampling, "analyze"))
    engines = {"answers__num_engines": 2, "engine__cpus_per_engine": 3}
    asked = needs.asked(of(analyze__instrument="modes", analyze__num_workers=4, **engines), "analyze")
    assert sum(need.total("CPU") for need in asked.values()) == 2 * 3 + 1
    asked = needs.asked(of(analyze__instrument="modes", analyze__num_workers=8, **engines), "analyze")
    assert sum(need.total("CPU") for need in asked.values()) == 8 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes.fractions": [0.5, 1.5]}, r"modes\.fractions=\[0\.5, 1\.5\]: give shares from 0 to 1"),
        ({"modes.budgets": [8, 8]}, r"modes\.budgets=\[8, 8\]"),
        ({"modes.delimiters": {"none": ""}}, r"modes\.delimiters\.none is empty"),
        ({"analyze.instrument": "modes", "prompt.thinking": False}, r"prompt\.thinking=false begins them all alike"),
        ({"shorter.fractions": [0.0]}, r"shorter\.fractions=\[0\.0\]: give shares above 0"),
        ({"shorter.fractions": [1.0]}, "the whole thinking is always beside"),
        ({"shorter.fractions": []}, r"shorter\.fractions=\[\] leaves no length"),
        ({"shorter.summary_draws": 4}, r"no effect without shorter\.summary_policy"),
        ({"shorter.summary_instruction": "{problem}"}, r"summary_instruction has no \{reasoning\}"),
        ({"shorter.ways": []}, r"shorter\.ways=\[\]: name truncation"),
        ({"shorter.summary_tokens": 9}, r"no effect without shorter\.summary_policy"),
        ({"answers.num_engines": [2, 1]}, r"answers\.num_engines=\(2, 1\)"),
    ],
)
def test_what_no_mode_or_way_can_be_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(Config(), changes)


@pytest.mark.ray
def test_engines_answer_behind_what_instruments_begin_and_the_page_shows_it(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    oracle(root)
    judged = verifying(root, "long")
    contexts.finish(judged, verify.run(judged))
    settings = {"answers__max_tokens": 8, "answers__temperature": 1.0, "analyze__num_correct": 2}
    compared = analyzed(root, "modes", "verify", modes__num_samples=2, engine__max_model_len=256, **settings)
    assert compared.figures["own"] == 0
    rows = (compared.folder / "answers" / "trajectories").read_tables("shard-", records.TRAJECTORY).to_pylist()
    cuts = (compared.folder / modes.CUTS.name).read_tables("shard-", modes.CUTS.schema).to_pylist()
    begun = {f"{cut['trajectory_id']}/{cut['mode']}": cut["begun_token_ids"] for cut in cuts}
    assert len(rows) == compared.figures["answers"]["sampled"] == 2 * sum(ids is not None for ids in begun.values())
    for each in rows:
        given = begun[each["question_id"]]
        assert each["token_ids"][: len(given)] == given
        assert each["forced"] == [{"start": 0, "end": len(given)}]
        assert 0 < len(each["token_ids"]) - len(given) <= 8
        assert each["logprobs"][: len(given)] == [0.0] * len(given)
        assert each["text"].startswith(text(given))
    page = shown(compared)
    assert "were not sampled by this policy" in page.tables
    assert "budget of 8 tokens" in page.tables
    # What the oracle wrote is all correct, and counts once more as that.
    assert compared.figures["groups"] == {"correct": compared.figures["modes"], "wrong": {}}
    assert "correct, budget of 8 tokens" in page.tables and "wrong, " not in page.tables
    # What leaves no room for an answer is set aside: an engine was asked for all that the response begins with.
    whole = [each for each in rows if each["question_id"].endswith(f"{modes.ENDED}_1")]
    longest = max(len(each["prompt_token_ids"]) + each["forced"][0]["end"] for each in whole)
    tight = {"engine__max_model_len": longest, "data__max_rejected_fraction": 1.0, "shorter__num_samples": 1}
    second = {"shorter__summary_policy": contexts.policy(tmp_path / "second"), "shorter__summary_tokens": 4}
    asked = {"shorter__summary_instruction": "{reasoning}", "shorter__summary_draws": 2, "shorter__summary_reads": 3}
    short = analyzed(root, "shorter", "verify", **tight, **second, **asked, **settings)
    assert short.figures["answers"]["rejected"] > 0
    assert short.figures["summaries"]["asked"] == 2 * 4
    drawn = (short.folder / summaries.PART / "trajectories").read_tables("shard-", records.TRAJECTORY).to_pylist()
    # Three tokens of the reasoning, and the second policy's own beginning of a turn.
    empty = len(prompts.prompt_token_ids(TOKENIZER, "", PromptConfig()))
    assert {len(each["prompt_token_ids"]) for each in drawn} == {empty + 3}
    assert "summaries by second" in shown(short).tables
    (claim,) = shown(short).claims
    assert (claim.id, claim.outcome) == ("summaries-keep-accuracy", "undecided")
    assert panels(shown(short)) == {"correct"}
    words = {"interventions__category": "calculation", "interventions__neutral": ["re: _"]}
    words |= {"interventions__num_samples": 2, "interventions__num_words": 1}
    placed = analyzed(root, "interventions", "verify", **words, **settings, engine__max_model_len=256)
    # seven places of a word in each of four trajectories
    assert placed.figures["answers"]["sampled"] == 2 * 7 * 4
    assert "continuations sampled from each place" in shown(placed).tables
