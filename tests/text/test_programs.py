import base64
import json
import pickle
import zlib

import pytest

from raml_ray.text.programs import ProgramTest, agree, extract_program, parse_tests, same_value

STDIN = {"kind": "stdin", "tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "", "output": ""}]}
FUNCTION = {"kind": "function", "name": "add", "tests": [{"args": [1, [2]], "output": {"a": None}}]}


def gold(base, **changes):
    return json.dumps({**base, **changes})


def test_tests_of_standard_input_are_read():
    tests = parse_tests(gold(STDIN))
    assert (tests.kind, tests.name) == ("stdin", "")
    assert tests.tests == (ProgramTest("1 2\n", "3\n"), ProgramTest("", ""))
    assert tests.stdin(0) == b"1 2\n"
    assert tests.is_passed(0, b"3")
    assert not tests.is_passed(0, b"4")


def test_tests_of_a_function_are_read_and_what_they_expect_is_not_handed_on():
    tests = parse_tests(gold(FUNCTION))
    assert (tests.kind, tests.name, tests.tests) == ("function", "add", (ProgramTest([1, [2]], {"a": None}),))
    assert json.loads(tests.stdin(0)) == {"name": "add", "args": [1, [2]]}
    assert tests.is_passed(0, b'{"a": null}')
    assert not tests.is_passed(0, b'{"a": 0}')


@pytest.mark.parametrize(
    "stdout", [b"", b"\xff", b"{", b"NaN", b"[" * 100_000, b'{"a": null} {"a": null}', b'{"a": Infinity}', b"9" * 5000]
)
def test_what_is_not_one_json_value_passes_no_test_of_a_function(stdout):
    assert not parse_tests(gold(FUNCTION)).is_passed(0, stdout)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "not JSON"),
        ("42", "JSON object"),
        ("[1]", "JSON object"),
        (gold(STDIN, kind="shell"), "`kind`.*'shell'"),
        (gold(STDIN, tests=[]), "`tests`"),
        (gold(STDIN, tests={"input": "", "output": ""}), "`tests`"),
        (gold(STDIN, tests=[{"input": "1"}]), "test 0 .*`output`"),
        (gold(STDIN, tests=[STDIN["tests"][0], {"input": 1, "output": "1"}]), "`input` of test 1"),
        (gold(STDIN, tests=[{"input": "1", "output": 1}]), "`output` of test 0"),
        (gold(FUNCTION, name=""), "`name`"),
        (gold(FUNCTION, name="a.b()"), "`name`"),
        (gold(FUNCTION, tests=[{"args": 1, "output": 1}]), "`args` of test 0"),
        ('{"kind": "function", "name": "f", "tests": [{"args": [], "output": NaN}]}', "NaN"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_gold_answer_that_cannot_be_read_says_why(text, named):
    with pytest.raises(ValueError, match=named):
        parse_tests(text)


def livecodebench(public, private="", metadata="{}"):
    return json.dumps({"public_test_cases": public, "private_test_cases": private, "metadata": metadata})


def test_livecodebench_rows_of_standard_input_are_read():
    public = json.dumps([{"input": "1\n", "output": "2\n", "testtype": "stdin"}])
    private = json.dumps([{"input": "3\n", "output": "4\n", "testtype": "stdin"}])
    assert parse_tests(livecodebench(public, private)).tests == (ProgramTest("1\n", "2\n"), ProgramTest("3\n", "4\n"))
    assert parse_tests(livecodebench(json.loads(public))).tests == (ProgramTest("1\n", "2\n"),)


def test_livecodebench_rows_of_a_function_are_read():
    public = json.dumps([{"input": '[1, 2]\n"x"', "output": "[2]", "testtype": "functional"}])
    tests = parse_tests(livecodebench(public, metadata='{"func_name": "take"}'))
    assert (tests.kind, tests.name, tests.tests) == ("function", "take", (ProgramTest([[1, 2], "x"], [2]),))
    with pytest.raises(ValueError, match="func_name"):
        parse_tests(livecodebench(public))


def test_livecodebench_rows_that_say_nothing_are_refused():
    with pytest.raises(ValueError, match="testtype"):
        parse_tests(livecodebench("[]"))
    with pytest.raises(ValueError, match="list of objects"):
        parse_tests(livecodebench("[1]"))


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (livecodebench(DEEP), "public_test_cases"),
        (livecodebench("[]", DEEP), "private_test_cases"),
        (livecodebench([{"testtype": "functional", "input": DEEP, "output": "1"}], metadata=DEEP), "metadata"),
        (
            livecodebench([{"testtype": "functional", "input": DEEP, "output": "1"}], metadata='{"func_name": "f"}'),
            "nested too deeply",
        ),
        (livecodebench([{"testtype": ["stdin"], "input": "", "output": ""}]), "testtype"),
        (livecodebench([{"testtype": {"a": 1}, "input": "", "output": ""}]), "testtype"),
        (gold(FUNCTION, tests=[{"args": [json.loads("[" * 300 + "]" * 300)], "output": 1}]), "more than 200 deep"),
        ("9" * 5000, "not JSON"),
    ],
)
def test_a_gold_answer_without_end_or_of_strange_types_is_a_value_error(text, named):
    with pytest.raises(ValueError, match=named):
        parse_tests(text)


def test_what_a_function_returns_may_be_nested_and_not_without_end():
    nested = json.dumps({"kind": "function", "name": "f", "tests": [{"args": [], "output": [[[]]]}]})
    assert parse_tests(nested).is_passed(0, b"[[[]]]")
    assert not parse_tests(nested).is_passed(0, b"[" * 900 + b"]" * 900)


def test_a_pickle_is_never_opened(tmp_path):
    class Harmful:
        def __reduce__(self):
            return open, (str(tmp_path / "opened"), "w")

    for content in (Harmful(), "[]"):
        private = base64.b64encode(zlib.compress(pickle.dumps(content))).decode()
        with pytest.raises(ValueError, match=r"private_test_cases.*convert them to JSON"):
            parse_tests(livecodebench("[]", private))
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("a\n```\nprint(1)\n```\nb", "print(1)\n"),
        ("```py\nprint(1)\n```\n```Python3\nprint(2)\n```", "print(2)\n"),
        ("```python\nprint(1)\n```\n```text\n1\n```", "print(1)\n"),
        ("```python\nprint(1)\n```\n```\n\n```", "print(1)\n"),
        ("```python\nprint(1)\n```\n```python\nprint(2)", "print(1)\n"),
        ("<think>```python\nprint(1)\n```</think>", None),
        ("<think>a</think>\n```python\nprint(1)\n```", "print(1)\n"),
        ("<think>\n```python\nprint(1)\n```\n</think>\nI give up.", None),
        ("<think>\n```python\nprint(1)\n```", None),
        ("1. so:\n   ```python\n   if x:\n       y()\n   ```", "if x:\n    y()\n"),
        ("```python\r\nprint(1)\r\n```\r\n", "print(1)\n"),
        ("```cpp\nint main;\n```", None),
        ("`print(1)`", None),
        ("print(1)", None),
        ("", None),
    ],
)
def test_the_last_closed_block_after_thinking_is_the_program(text, program):
    assert extract_program(text) == program


@pytest.mark.parametrize(
    ("expected", "printed", "agreed"),
    [
        ("3\n", "3", True),
        ("3", "\n 3 \n\n", True),
        ("1\n2\n", "1  \r\n2", True),
        ("1\n2", "1 2", False),
        ("1\n2", "1\n2\n3", False),
        ("1\n\n2", "1\n2", False),
        ("1.50 2", "1.5 2.0", True),
        ("1 2", "1  2", True),
        ("100", "1e2", True),
        ("0.333", "0.3333", False),
        ("0.30000000000000000001", "0.3", False),
        ("Yes", "yes", False),
        ("a b", "a  b", False),
        ("x 1", "x 1.0", False),
        ("nan", "NaN", False),
        ("1000", "1_000", False),
        ("3", "\N{ARABIC-INDIC DIGIT THREE}", False),
        ("1e999999999", "1e999999998", False),
        ("1" * 5000, "1" * 4999 + "2", False),
        ("", "", True),
        ("", "0", False),
    ],
)
def test_printed_texts_agree_by_lines_and_decimal_numbers(expected, printed, agreed):
    assert agree(expected, printed) is agreed


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (2, 2.0, True),
        (0.3, 0.1 + 0.2, False),
        (True, 1, False),
        (1, True, False),
        (False, 0.0, False),
        (None, 0, False),
        ("1", 1, False),
        ([1, [2]], [1, [2]], True),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ([True], [1], False),
        ({"a": [1]}, {"a": [1.0]}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({}, [], False),
        (10**300, 10**300 + 1, False),
    ],
)
def test_json_values_are_compared_by_value_without_rounding(expected, found, same):
    assert same_value(expected, found) is same
