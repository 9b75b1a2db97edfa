import random
import re

import pytest

from raml_ray.miniature import task
from raml_ray.settings import MiniatureConfig

SETTINGS = MiniatureConfig()
SLIP_FREE = MiniatureConfig(reflection_probability=0, verification_probability=0)


def states(text: str) -> list[list[str]]:
    thought = text.removeprefix("<think>\n").split("\n</think>")[0]
    return [re.sub(r"^(Wait|Alternatively)", "", line).split() for line in thought.split("\n")]


def total(slots: list[str]) -> int:
    return sum(int(slot) for slot in slots if slot != "_")


def test_a_state_is_worth_its_sum_or_that_sums_last_digit():
    state = (None, 3, 8, 2, 4, 2)
    assert task.value(state, "sum") == 19
    assert task.value(state, "sum_mod_10") == 9


def test_a_question_reads_as_a_heading_and_its_slots():
    assert task.problem((None, 3, 12), "sum") == "Sum: _ 3 12"
    assert task.parse("Sum mod 10: _ 3 8") == ((None, 3, 8), "sum_mod_10")


@pytest.mark.parametrize("text", ["Sum:", "Sum: _ _", "Sum: 1 x", "What is 1 + 1?", "Product: 1 2", "Sum: 1 2 "])
def test_a_text_that_is_no_question_is_refused_with_an_example(text: str):
    with pytest.raises(ValueError, match="Sum: _ 3 8"):
        task.parse(text)


@pytest.mark.parametrize("domain", ["sum", "sum_mod_10"])
def test_a_reduction_leaves_the_value_and_one_number_less(domain: str):
    rng = random.Random(0)
    state: task.State = (4, None, 3, 8, None, 2)
    for num_left in (3, 2, 1):
        state, slot = task.reduced(state, domain, rng)
        assert sum(number is not None for number in state) == num_left
        assert state[slot] is not None
        assert task.value(state, domain) == {"sum": 17, "sum_mod_10": 7}[domain]


def test_sets_have_the_levels_domains_and_answers_they_are_named_for():
    for name, domain, level in [("in_domain", "sum", 5), ("deeper", "sum", 6), ("transfer", "sum_mod_10", 5)]:
        questions = task.questions(name, SETTINGS, seed=0)
        assert len(questions) == 60
        assert {(question.domain, question.level, question.source) for question in questions} == {
            (domain, level, f"miniature:{name}")
        }
        for question in questions:
            expected = total(question.problem.split(":")[1].split())
            assert int(question.answer) == (expected if domain == "sum" else expected % 10)


def test_a_share_of_the_training_questions_is_of_the_other_domain_and_of_any_first_so_many():
    settings = MiniatureConfig(num_train=8, num_eval=4, transfer_fraction=0.25)
    domains = [question.domain for question in task.questions("train", settings, seed=0)]
    assert domains == ["sum", "sum", "sum", "sum_mod_10"] * 2
    assert {question.domain for question in task.questions("in_domain", settings, seed=0)} == {"sum"}
    plain = task.questions("train", MiniatureConfig(num_train=8), seed=0)
    assert [task.parse(question.problem)[0] for question in plain] == [
        task.parse(question.problem)[0] for question in task.questions("train", settings, seed=0)
    ]


def test_questions_are_distinct_and_decided_by_the_seed():
    train = task.questions("train", SETTINGS, seed=3)
    assert (
        len({question.question_id for question in train})
        == len({question.problem for question in train})
        == SETTINGS.num_train
    )
    assert train == task.questions("train", SETTINGS, seed=3)
    assert train != task.questions("train", SETTINGS, seed=4)


def test_fewer_questions_are_the_first_of_more():
    few = task.questions("deeper", MiniatureConfig(num_eval=7), seed=0)
    assert few == task.questions("deeper", MiniatureConfig(num_eval=70), seed=0)[:7]


def test_no_evaluation_question_is_a_training_question_of_any_seed_or_size():
    # Two operands have 100 questions: train's sets of all seeds, and the evaluation's, lie on their own sides.
    small = MiniatureConfig(num_operands=2, num_train=60, num_eval=15)
    train = {question.problem for seed in range(20) for question in task.questions("train", small, seed=seed)}
    held = {question.problem for seed in range(20) for question in task.questions("in_domain", small, seed=seed)}
    assert train.isdisjoint(held)
    assert len(train) + len(held) == 100


def test_an_unknown_set_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="train, in_domain, deeper, transfer"):
        task.questions("test", SETTINGS, seed=0)


def test_more_questions_than_exist_are_refused_with_the_setting():
    with pytest.raises(ValueError, match=r"miniature\.num_train=128,.*has only \d+ distinct questions of 2 operands"):
        task.questions("train", MiniatureConfig(num_operands=2, num_train=128), seed=0)


def test_more_operands_than_slots_are_refused():
    with pytest.raises(ValueError, match=r"miniature\.num_operands=7 exceeds miniature\.num_slots=6"):
        task.questions("train", MiniatureConfig(num_operands=7), seed=0)


def test_an_oracle_of_two_operands_has_one_slip_free_response():
    assert task.oracle("Sum: _ 3 8", SLIP_FREE, num=5, seed=0) == [
        "<think>\n _ 3 8\n _ _ 11\n</think>\n\n**Final Answer**\n\\boxed{11}"
    ]


def test_an_oracle_finds_all_orders_of_a_chain_and_no_more():
    # Four operands leave 3, 2 and 1 pairs to choose from: 3! orders.
    assert len(set(task.oracle("Sum: 1 2 3 4", SLIP_FREE, num=50, seed=0))) == 6


def test_oracle_responses_are_distinct_correct_and_reduce_a_pair_per_line():
    for question in task.questions("train", SETTINGS, seed=0)[:20]:
        texts = task.oracle(question.problem, SETTINGS, num=32, seed=0)
        assert len(set(texts)) == len(texts) == 32
        for text in texts:
            assert text.endswith(f"</think>\n\n**Final Answer**\n\\boxed{{{question.answer}}}")
            lines = states(text)
            assert lines[0] == question.problem.split()[1:]
            assert lines[-1] == ["_"] * 5 + [question.answer]
            if "Wait" not in text and "Alternatively" not in text:
                assert [total(line) for line in lines] == [int(question.answer)] * 5


def test_a_slip_is_wrong_and_the_next_line_waits_and_mends_it():
    always = MiniatureConfig(reflection_probability=1, verification_probability=0)
    for text in task.oracle("Sum: 1 2 3 4", always, num=10, seed=0):
        thought = text.removeprefix("<think>\n").split("\n</think>")[0].split("\n")
        assert len(thought) == 1 + 2 * 3  # the question, and every reduction twice
        for wrong, mended in zip(thought[1::2], thought[2::2], strict=True):
            assert 1 <= abs(total(wrong.split()) - 10) <= task.LARGEST_SLIP
            assert mended.startswith("Wait ")
            assert total(mended.split()[1:]) == 10


def test_a_verification_passes_a_second_time_and_otherwise():
    always = MiniatureConfig(reflection_probability=0, verification_probability=1)
    for text in task.oracle("Sum: 1 2 3 4", always, num=6, seed=0):
        first, second = text.split("\n</think>")[0].split("\nAlternatively")
        assert first.endswith(" _ _ _ 10")
        assert len(second.split("\n")) == 2  # three reductions, two per line
        assert second.endswith(" _ _ _ 10")


def test_a_short_oracle_takes_two_reductions_per_line():
    # Four reductions: the question, the line after two of them, and the line after all four.
    for text in task.oracle("Sum: 1 2 3 4 5", SLIP_FREE, num=8, seed=0, length="short"):
        lines = states(text)
        assert [sum(slot != "_" for slot in line) for line in lines] == [5, 3, 1]
        assert lines[-1][-1] == "15"


def test_fewer_trajectories_are_the_first_of_more_and_seeds_differ():
    ask = "Sum: _ 3 8 2 4 2"
    assert task.oracle(ask, SETTINGS, num=4, seed=0) == task.oracle(ask, SETTINGS, num=16, seed=0)[:4]
    assert task.oracle(ask, SETTINGS, num=16, seed=0) != task.oracle(ask, SETTINGS, num=16, seed=1)
