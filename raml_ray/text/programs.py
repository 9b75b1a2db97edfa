"""Programs as answers: the tests that a gold answer holds, the program that a trajectory ends with, and when they agree.

A gold answer is JSON text, of one of two kinds:

- `{"kind": "stdin", "tests": [{"input": "1 2\\n", "output": "3\\n"}]}`: the program reads standard input and prints.
- `{"kind": "function", "name": "add", "tests": [{"args": [1, 2], "output": 3}]}`: a function of that name, or a method
  of that name of a class `Solution`, is called.

LiveCodeBench's own fields are read too: an object with `public_test_cases`, `private_test_cases` and `metadata`, each as
JSON text or as what it holds. The data set publishes its private tests as a compressed pickle. A pickle is never
opened here, not even one that should hold a mere text: such a gold answer is refused (docs/code_sandbox.md has the
conversion).

Agreement, as LiveCodeBench's evaluation has it:

1. Of what a program prints and of what it should print, blanks around the whole and around every line do not count.
   Then there must be equally many lines. Two lines agree if they are the same text, or if both are as many decimal
   numbers of the same values: `1.50 2` is `1.5 2.0`, `0.333` is not `0.3333`, `a  b` is not `a b`.
2. What a function returns leaves the sandbox as JSON and is compared as JSON values: a tuple is a list, `2.0` is `2`,
   `true` is not `1`, and no number is rounded.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from raml_ray.text.final_answer import conclusion

FENCE = re.compile(r"([ \t]*)```[ \t]*([\w+.-]*)[ \t]*")
LANGUAGES = frozenset({"", "py", "python", "python3"})
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?")
MAX_DEPTH = 200
"""Of lists and objects within each other, in tests and in what a function returns."""
LIVECODEBENCH = frozenset({"public_test_cases", "private_test_cases"})


class ProgramTest(NamedTuple):
    """`ProgramTest("1 2\\n", "3\\n")` of kind stdin, `ProgramTest([1, 2], 3)` of kind function."""

    given: Any
    """Standard input, or the list of arguments."""
    expected: Any
    """What should be printed, or returned."""


@dataclass(frozen=True, slots=True)
class ProgramTests:
    """A gold answer that was read: `ProgramTests("function", "add", (ProgramTest([1, 2], 3),))`."""

    kind: Literal["stdin", "function"]
    name: str
    """Of the function; empty for stdin."""
    tests: tuple[ProgramTest, ...]

    def stdin(self, index: int) -> bytes:
        """What the sandbox is given on standard input for that test: never what is expected."""
        given = self.tests[index].given
        text = given if self.kind == "stdin" else json.dumps({"name": self.name, "args": given})
        return str(text).encode("utf-8", "surrogatepass")

    def is_passed(self, index: int, stdout: bytes) -> bool:
        """Whether what came out of the sandbox agrees with what that test expects."""
        expected = self.tests[index].expected
        try:
            text = stdout.decode()
            return agree(expected, text) if self.kind == "stdin" else same_value(expected, _json(text))
        except ValueError:  # not UTF-8, or not JSON
            return False


def parse_tests(text: str) -> ProgramTests:
    """The tests of a gold answer.

    Raises: ValueError naming what is wrong with it.
    """
    try:
        gold = _json(text)
    except ValueError as error:
        raise ValueError(f"the gold answer is not JSON ({error}): {text[:80]!r}") from None
    if not isinstance(gold, dict):
        raise ValueError(f"the gold answer must be a JSON object with `kind` and `tests`, not {text[:80]!r}")
    if LIVECODEBENCH & gold.keys():
        gold = _from_livecodebench(gold)
    kind, tests = gold.get("kind"), gold.get("tests")
    if kind not in ("stdin", "function"):
        raise ValueError(f"`kind` of the gold answer must be stdin or function, not {kind!r}")
    if not isinstance(tests, list) or not tests:
        raise ValueError("`tests` of the gold answer must be a list of at least one test")
    name = gold.get("name", "")
    if kind == "function" and not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"`name` of the gold answer must name the function to call, not {name!r}")
    return ProgramTests(
        kind,
        name if kind == "function" else "",
        tuple(_read_test(kind, index, test) for index, test in enumerate(tests)),
    )


def _read_test(kind: str, index: int, test: object) -> ProgramTest:
    given, of_type, what = ("input", str, "a text") if kind == "stdin" else ("args", list, "a list")
    if not isinstance(test, dict) or given not in test or "output" not in test:
        raise ValueError(f"test {index} of the gold answer must be an object with `{given}` and `output`")
    if not isinstance(test[given], of_type):
        raise ValueError(f"`{given}` of test {index} of the gold answer must be {what}")
    if kind == "stdin" and not isinstance(test["output"], str):
        raise ValueError(f"`output` of test {index} of the gold answer must be a text")
    return ProgramTest(test[given], test["output"])


def _from_livecodebench(gold: dict[str, Any]) -> dict[str, Any]:
    cases = []
    for field in ("public_test_cases", "private_test_cases"):
        held = _held(gold.get(field) or [], field)
        if not isinstance(held, list) or not all(isinstance(case, dict) for case in held):
            raise ValueError(f"`{field}` of the gold answer must be a list of objects")
        cases += held
    types = {str(case.get("testtype")) for case in cases}
    if types == {"stdin"}:
        return {"kind": "stdin", "tests": cases}
    if types != {"functional"}:
        raise ValueError(f"`testtype` of the tests must be stdin or functional, the same for all, not {sorted(types)}")
    metadata = _held(gold.get("metadata") or {}, "metadata")
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    if not name:
        raise ValueError("`metadata` of the gold answer has no `func_name`, which functional tests need")
    try:
        tests = [
            {"args": [_json(line) for line in case["input"].split("\n")], "output": _json(case["output"])}
            for case in cases
        ]
    except (KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"a functional test must have JSON lines as `input` and JSON as `output` ({error})") from None
    return {"kind": "function", "name": name, "tests": tests}


def _held(value: Any, field: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return _json(value)
    except ValueError:
        raise ValueError(
            f"`{field}` of the gold answer is not JSON. LiveCodeBench publishes private tests as a compressed pickle,"
            " which is not opened here: convert them to JSON first (docs/code_sandbox.md)"
        ) from None


def _json(text: str) -> Any:
    """Raises: ValueError for what is no JSON value, or is nested so deeply that handling it would exhaust the stack."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for held in level for inner in _inside(held)]
    if level:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return value


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def extract_program(text: str) -> str | None:
    """The last closed block between ``` lines, marked as Python or not at all, after thinking; None if there is none.

    A block in an indented list item loses that indentation.
    """
    found: str | None = None
    opened: re.Match[str] | None = None
    block: list[str] = []
    for line in (conclusion(text) or "").split("\n"):
        fence = FENCE.fullmatch(line.removesuffix("\r"))
        if opened is None:
            opened, block = fence, []
        elif fence is None or fence[2]:
            indent = opened[1]
            block.append(line.removesuffix("\r").removeprefix(indent))
        else:
            if opened[2].lower() in LANGUAGES and any(map(str.strip, block)):
                found = "\n".join([*block, ""])
            opened = None
    return found


def agree(expected: str, printed: str) -> bool:
    """Whether a printed text is the expected one, by rule 1."""
    wanted = [line.strip() for line in expected.strip().split("\n")]
    found = [line.strip() for line in printed.strip().split("\n")]
    return len(wanted) == len(found) and all(map(_lines_agree, wanted, found))


def _lines_agree(wanted: str, found: str) -> bool:
    if wanted == found:
        return True
    pairs = wanted.split(), found.split()
    if len(pairs[0]) != len(pairs[1]) or not all(NUMBER.fullmatch(word) for words in pairs for word in words):
        return False
    return all(Decimal(one) == Decimal(other) for one, other in zip(*pairs, strict=True))


def same_value(expected: Any, found: Any) -> bool:
    """Whether two JSON values are the same, by rule 2. Numbers are compared by value, true and false are none."""
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(same_value, expected, found))
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(same_value(value, found[key]) for key, value in expected.items())
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (expected, found)]
    if all(numbers):
        return bool(expected == found)
    return type(expected) is type(found) and bool(expected == found)
