import pyarrow as pa
import pytest
import torch

from raml_ray.miniature import tokenizer as miniature
from raml_ray.settings import PromptConfig
from raml_ray.text.batches import Example, Examples, batches, collate, encode, micro_batches, table
from raml_ray.text.final_answer import final_span


def example(num_prompt: int, num_response: int, first: int = 1) -> Example:
    ids = list(range(first, first + num_prompt + num_response))
    return Example(ids[:num_prompt], ids[num_prompt:])


def test_a_batch_is_padded_on_the_right_and_its_mask_covers_responses_only() -> None:
    batch = collate(
        [Example([5, 6], [7, 8, 2], {"advantage": [0.5, 1.5, 2.5]}), Example([9], [2], {"advantage": [-1.0]})]
    )
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 8, 2], [9, 2, 0, 0, 0]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert batch.response_mask_BT.tolist() == [[0, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert batch.fields["advantage"].tolist() == [[0, 0, 0.5, 1.5, 2.5], [0, -1.0, 0, 0, 0]]


def test_a_packed_batch_is_one_row_in_which_positions_begin_anew_and_nothing_is_padding() -> None:
    batch = collate(
        [Example([5, 6], [7, 8, 2], {"advantage": [0.5, 1.5, 2.5]}), Example([9], [2], {"advantage": [-1.0]})],
        packing=True,
    )
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 8, 2, 9, 2]]
    assert batch.attention_mask_BT is None
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 4, 0, 1]]
    assert batch.response_mask_BT.tolist() == [[0, 0, 1, 1, 1, 0, 1]]
    assert batch.fields["advantage"].tolist() == [[0, 0, 0.5, 1.5, 2.5, 0, -1.0]]
    assert batch.lengths == (5, 2)


@pytest.mark.parametrize("packing", [False, True])
def test_values_per_column_come_apart_into_those_of_each_example(packing: bool) -> None:
    examples = [Example([5, 6], [7, 8, 2]), Example([9], [2]), Example([4], [3, 1])]
    batch = collate(examples, packing=packing)
    assert [ids.tolist() for ids in batch.split(batch.input_ids_BT)] == [[5, 6, 7, 8, 2], [9, 2], [4, 3, 1]]


def test_a_weightless_batch_has_the_same_tokens_and_counts_none() -> None:
    batch = collate([example(2, 3)])
    assert batch.weightless().input_ids_BT.equal(batch.input_ids_BT)
    assert batch.weightless().response_mask_BT.sum() == 0
    assert batch.response_mask_BT.sum() == 3


def test_groups_stay_within_the_token_budget_and_lose_nobody() -> None:
    # Lengths 6, 4, 3, 3, 2 within 8: [6], [4, 3] (2 rows x 4), [3, 2] (2 rows x 3).
    examples = [example(1, 2, 10), example(1, 5, 20), example(1, 1, 30), example(2, 2, 40), example(2, 1, 50)]
    groups = micro_batches(examples, 8)
    assert [[len(e) for e in group] for group in groups] == [[6], [4, 3], [3, 2]]
    assert sorted(id(e) for group in groups for e in group) == sorted(map(id, examples))
    assert micro_batches(examples, 8) == groups


def test_packed_rows_are_filled_first_fit_from_the_longest_to_the_shortest() -> None:
    # Lengths 6, 4, 3, 3, 2 within 8: 6 and the 2 that fits beside it, 4 and a 3, the other 3.
    examples = [example(1, 2, 10), example(1, 5, 20), example(1, 1, 30), example(2, 2, 40), example(2, 1, 50)]
    groups = micro_batches(examples, 8, packing=True)
    assert [[len(e) for e in group] for group in groups] == [[6, 2], [4, 3], [3]]
    assert sorted(id(e) for group in groups for e in group) == sorted(map(id, examples))
    assert groups[1][1] is examples[0]  # of two that are as long, the one given first
    assert micro_batches(examples, 8, packing=True) == groups


@pytest.mark.parametrize("packing", [False, True])
def test_an_example_beyond_the_budget_is_a_group_of_its_own(packing: bool) -> None:
    groups = micro_batches([example(1, 9), example(1, 2)], 4, packing=packing)
    assert [len(group) for group in groups] == [1, 1]


@pytest.mark.parametrize("packing", [False, True])
def test_ranks_with_less_to_do_pass_as_often_with_nothing_to_count(packing: bool) -> None:
    made = list(batches([example(1, 2)], 100, 3, packing=packing))
    assert [float(batch.response_mask_BT.sum()) for batch in made] == [2.0, 0.0, 0.0]
    assert [batch.attention_mask_BT is None for batch in made] == [packing] * 3
    assert [float(batch.response_mask_BT.sum()) for batch in batches([], 100, 1, packing=packing)] == [0.0]
    with pytest.raises(ValueError, match="2 micro-batches, but the ranks agreed on 1"):
        list(batches([example(1, 9), example(1, 9)], 10, 1, packing=packing))


def test_what_cannot_be_trained_on_is_refused() -> None:
    with pytest.raises(ValueError, match="no examples"):
        collate([])
    with pytest.raises(ValueError, match="needs a prompt and a response"):
        collate([Example([], [1, 2])])
    with pytest.raises(ValueError, match="advantage has 1 values for 2 response tokens"):
        collate([Example([1], [1, 2], {"advantage": [0.5]})])
    with pytest.raises(ValueError, match="different fields"):
        collate([Example([1], [2], {"advantage": [0.5]}), Example([1], [2])])


def test_examples_come_back_from_their_table_in_any_chunks() -> None:
    first, second = [example(1, 2), example(3, 1)], [example(2, 2, 40)]
    rows = Examples(pa.concat_tables([table(first), table(second)]))
    assert list(rows) == [*first, *second]
    assert len(Examples(table([]))) == 0
    with pytest.raises(IndexError):
        rows[3]


def test_rows_of_a_sliced_table_are_the_slice() -> None:
    every = [example(1, 2), example(3, 1), example(2, 2, 40)]
    assert list(Examples(table(every).slice(1))) == every[1:]


def test_a_response_is_the_text_in_the_students_tokens_and_ends_once() -> None:
    tokenizer = miniature.build()
    made = encode(tokenizer, "Sum: _ 3 8", "<think>\n 3 8\n</think>", PromptConfig())
    assert tokenizer.decode(made.response_token_ids) == "<think>\n 3 8\n</think><|im_end|>"
    assert tokenizer.decode(made.prompt_token_ids) == "<|im_start|>user\nSum: _ 3 8<|im_end|>\n<|im_start|>assistant\n"
    assert encode(tokenizer, "Sum: _ 3 8", "<think>\n 3 8\n</think><|im_end|>", PromptConfig()) == made


def test_a_forced_beginning_belongs_to_the_prompt() -> None:
    tokenizer = miniature.build()
    prompt = PromptConfig(template="plain", response_prefix="\n")
    made = encode(tokenizer, "ab", "\ncd", prompt)
    assert (tokenizer.decode(made.prompt_token_ids), tokenizer.decode(made.response_token_ids)) == (
        "ab\n",
        "cd<|im_end|>",
    )
    with pytest.raises(ValueError, match="response_prefix"):
        encode(tokenizer, "ab", "cd", prompt)


def test_the_answer_s_characters_mark_its_tokens_and_a_token_of_both_is_the_answer_s() -> None:
    tokenizer = miniature.build()
    text = "<think>\n 3 8\n</think>\n\n**Final Answer**\n\\boxed{11}"
    made = encode(tokenizer, "Sum: _ 3 8", text, PromptConfig(), answer=final_span(text))
    marks = made.fields["answer"]
    assert len(marks) == len(made.response_token_ids)
    assert tokenizer.decode([i for i, mark in zip(made.response_token_ids, marks, strict=True) if mark]) == "11"
    assert sum(marks) == len(tokenizer("11", add_special_tokens=False)["input_ids"])
    # `\\boxed{` is one token: its last character is enough.
    start, end = final_span(text) or (0, 0)
    wider = encode(tokenizer, "Sum: _ 3 8", text, PromptConfig(), answer=(start - 1, end)).fields["answer"]
    assert sum(wider) == sum(marks) + 1
    prompt = PromptConfig(template="plain", response_prefix="<think>")
    with_prefix = encode(tokenizer, "Sum: _ 3 8", text, prompt, answer=final_span(text))
    assert list(with_prefix.fields["answer"]) == list(marks)[-len(with_prefix.response_token_ids) :]
    # An answer that the prompt forces is no response token.
    assert not any(encode(tokenizer, "a", text, prompt, answer=(0, 7)).fields["answer"])
    assert list(Examples(table([made, example(2, 1)]))) == [
        Example(list(made.prompt_token_ids), list(made.response_token_ids), {"answer": list(marks)}),
        example(2, 1),
    ]


def test_a_batch_moves_as_a_whole() -> None:
    batch = collate([Example([1], [2], {"advantage": [0.5]})]).to(torch.device("meta"))
    assert {t.device.type for t in (batch.input_ids_BT, batch.response_mask_BT, batch.fields["advantage"])} == {"meta"}
    packed = collate([example(1, 2), example(2, 1)], packing=True).to(torch.device("meta"))
    assert (packed.position_ids_BT.device.type, packed.lengths) == ("meta", (3, 3))
