"""Trajectories without their order, and with the answer where it has no business."""

from raml_ray.text import baselines


def test_lines_change_places_and_markup_stays() -> None:
    text = "<think>\n a\n b\n c\n</think>\n"
    found = baselines.shuffled(text, 0)
    assert found is not None and found != text
    lines = found.split("\n")
    assert (lines[0], lines[4:]) == ("<think>", ["</think>", ""])
    assert sorted(lines[1:4]) == [" a", " b", " c"]
    assert found == baselines.shuffled(text, 0)


def test_a_text_of_one_line_changes_its_sentences() -> None:
    assert baselines.shuffled(" One. Two!\n", 5) == " Two! One.\n"
    assert baselines.shuffled("One.", 5) is None
    assert baselines.shuffled("a\na\na", 5) is None  # nothing to tell apart


def test_the_answer_stands_behind_the_line_in_which_the_share_is_reached() -> None:
    text = "aaaa\nbbbb\ncccc"  # 14 characters; the half of it lies in the second line
    assert baselines.spliced(text, "42", 0.5) == "aaaa\nbbbb\n42\ncccc"
    assert baselines.spliced(text, "42", 0.0) == "aaaa\n42\nbbbb\ncccc"
    assert baselines.spliced(text, "42", 1.0) == "aaaa\nbbbb\ncccc\n42"
