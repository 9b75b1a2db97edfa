import itertools
import re

from raml_ray.miniature import documents, task, tokenizer
from raml_ray.miniature.documents import Document
from raml_ray.settings import BaseConfig, MiniatureConfig

TOKENIZER = tokenizer.build()
MINIATURE, DEFAULT = MiniatureConfig(), BaseConfig()


def some(num_batches: int, base: BaseConfig = DEFAULT, seed: int = 0) -> list[Document]:
    reading = documents.batches(MINIATURE, base, TOKENIZER, seed=seed)
    return [document for batch in itertools.islice(reading, num_batches) for document in batch]


def learned_text(document: Document) -> str:
    return TOKENIZER.decode([one for one, is_learned in zip(*document, strict=True) if is_learned])


def test_batches_have_their_size_and_are_decided_by_the_seed():
    assert len(some(1, BaseConfig(batch_size=10))) == 10
    assert some(2) == some(2)
    assert some(2) != some(2, seed=1)


def test_no_document_asks_a_question_that_is_kept_for_evaluation():
    asked = 0
    for document in some(20):
        question = re.search(r"user\n(.*)<\|im_end\|>\n<\|im_start\|>", TOKENIZER.decode(document.token_ids))
        if question:
            state, _ = task.parse(question[1])
            assert not task.held_out(tuple(number for number in state if number is not None))
            asked += 1
    assert asked == 20 * 26  # 40 % of 64, rounded


def test_questions_are_never_learned_and_every_document_ends_with_the_end_of_its_turn():
    for document in some(5):
        assert len(document.token_ids) == len(document.learned)
        assert document.token_ids[-1] == TOKENIZER.eos_token_id
        assert document.learned[-1]
        assert not re.search("Sum|user|assistant", learned_text(document))


def test_facts_are_one_reduction_of_their_state():
    base = BaseConfig(batch_size=100)
    for document in some(1, base)[:60]:
        before, after = TOKENIZER.decode(document.token_ids, skip_special_tokens=True).split("\n")
        state, domain = task.parse(before)
        result, _ = task.parse(task.HEADINGS[domain] + after)
        assert task.value(result, domain) == task.value(state, domain)
        assert sum(slot is None for slot in result) == sum(slot is None for slot in state) + 1


def test_without_slips_every_chat_answers_rightly():
    base = BaseConfig(slip_probability=0)
    for document in some(5, base):
        text = TOKENIZER.decode(document.token_ids)
        question = re.search(r"user\n(.*)<\|im_end\|>\n<\|im_start\|>", text)
        if question:
            assert f"\\boxed{{{task.value(*task.parse(question[1]))}}}<|im_end|>" in text


def test_an_early_answer_learns_what_to_answer_but_not_to_stop():
    base = BaseConfig(early_answer_fraction=0.9, slip_probability=0)
    early = [one for one in some(3, base) if "</think>" not in TOKENIZER.decode(one.token_ids)]
    chats = [one for one in early if "boxed" in TOKENIZER.decode(one.token_ids)]
    assert len(chats) > 50
    for document in chats:
        assert re.search(r"<think>\n[^a-z]*[0-9]+}<\|im_end\|>$", learned_text(document))


def test_slips_leave_wrong_answers_at_about_their_rate():
    # A question of two operands has one step: 12 % of its thoughts slip, a third of the slips are mended.
    base = BaseConfig(batch_size=400, early_answer_fraction=0)
    miniature = MiniatureConfig(num_slots=3, deeper_operands=2, verification_probability=0)
    reading = documents.batches(miniature, base, TOKENIZER, seed=0)
    right = wrong = 0
    for document in itertools.chain.from_iterable(itertools.islice(reading, 20)):
        text = TOKENIZER.decode(document.token_ids)
        found = re.search(r"user\n(Sum: _ \d \d)<\|im_end\|>.*\\boxed\{(\d+)\}", text, re.DOTALL)
        if found and "<think>\n\n" not in text:
            is_right = task.value(*task.parse(found[1])) == int(found[2])
            right, wrong = right + is_right, wrong + (not is_right)
    assert right + wrong > 800
    assert abs(wrong / (right + wrong) - 0.08) < 0.025
