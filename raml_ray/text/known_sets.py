"""The paper's question sets, trajectories and benchmarks, by name: `paper:orz-math`, `paper:aime24` (paper 3.1, 3.4).

Where each stands on the Hugging Face hub, which columns hold what (as the paper's released code and OpenCompass' loaders
read them), and how many rows there have to be. A set may also stand in a folder, `data.mirror`: `NAME.jsonl`, `NAME.parquet`
or a folder `NAME` of such files, as the hub has them, with their checksums in `SHA256SUMS`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from raml_ray.config import hint
from raml_ray.settings import DataConfig

PAPER = "paper:"
Columns = tuple[tuple[str, str], ...]
PLAIN: Columns = (("problem", "problem"), ("answer", "answer"))
ASKED: Columns = (("problem", "question"), ("answer", "answer"))


class KnownSet(NamedTuple):
    """One set: `KnownSet("OWNER/NAME", "train", policy="...")`; a policy is whose trajectories it holds."""

    hub_name: str
    """Empty for a set that only a mirror can hold."""
    split: str = "train"
    subset: str = ""
    columns: Columns = PLAIN
    policy: str = ""
    answers: Literal["math", "choice", "code"] = "math"
    num_rows: tuple[int, ...] = ()
    """How many rows there are: one of these numbers. Empty: not known."""
    level: int = 0
    """Of its questions only those of this level; 0 takes all."""
    num_of_level: int = 0
    shape: Literal["as_is", "options", "program"] = "as_is"
    """What has to be made of its rows (`shaped`)."""
    parts: tuple[str, ...] = ()
    """The known sets that it is made of."""
    picked: tuple[int, ...] = ()
    """Of its questions only those with these answers, in this order; empty takes all."""
    mirrored_as: str = ""
    """Its name in a mirror, where that is another set's."""


MATH500 = KnownSet("HuggingFaceH4/MATH-500", "test", num_rows=(500,))
AIME24 = KnownSet("HuggingFaceH4/aime_2024", num_rows=(30,))
AIME25 = KnownSet("opencompass/AIME2025", "test", columns=ASKED, num_rows=(15,))
HARD = KnownSet("opencompass/LiveMathBench", "test", columns=ASKED, num_rows=(42, 45))
"""The paper names 45 questions (C.3); its Fig. 11 was computed from 42 of the English ones."""
KNOWN = {
    "orz-math": KnownSet("jnanliu/orz-math-filtered"),
    "orz-math-val": KnownSet("jnanliu/orz-math-filtered-val", "test"),
    "orz-math-qwen-72b-rollouts": KnownSet(
        "jnanliu/orz-math-filtered-qwen-72b-rollout", policy="Qwen2.5-Math-72B-Instruct"
    ),
    "orz-math-distill-14b-rollouts": KnownSet(
        "jnanliu/orz-math-filtered-distill-14b-rollout", policy="DeepSeek-R1-Distill-Qwen-14B"
    ),
    "aime24": AIME24,
    "aime24-four": AIME24._replace(picked=(204, 25, 540, 468), mirrored_as="aime24"),
    "aime25-i": AIME25._replace(subset="AIME2025-I"),
    "aime25-ii": AIME25._replace(subset="AIME2025-II"),
    "aime25": KnownSet("", parts=("aime25-i", "aime25-ii")),
    "math500": MATH500,
    "math500-level5": MATH500._replace(
        columns=(*PLAIN, ("level", "level")), level=5, num_of_level=134, mirrored_as="math500"
    ),
    "livemathbench-hard-en": HARD._replace(subset="v202412_hard_en"),
    "livemathbench-hard-cn": HARD._replace(subset="v202412_hard_cn"),
    "livemathbench-hard": KnownSet("", parts=("livemathbench-hard-en", "livemathbench-hard-cn")),
    "gpqa-diamond": KnownSet(
        "Idavidrein/gpqa", subset="gpqa_diamond", answers="choice", num_rows=(198,), shape="options"
    ),
    # The hub holds it as a loading script, and its private tests as pickles: neither is run here.
    "livecodebench-v4-v5": KnownSet("", answers="code", num_rows=(268,), shape="program"),
}


def name_of(path: str) -> str:
    """The known set that a path names; empty for any other path. Raises: ValueError with the nearest name."""
    if not path.startswith(PAPER):
        return ""
    name = path.removeprefix(PAPER)
    if name not in KNOWN:
        there = ", ".join(PAPER + known for known in KNOWN)
        raise ValueError(f"data.path={path!r}: no such set{hint(name, list(KNOWN))}; there are {there}")
    return name


def parts_of(data: DataConfig) -> list[DataConfig]:
    """The settings of every set that a known one is made of; these settings as they are for any other path."""
    parts = KNOWN[name].parts if (name := name_of(data.path)) else ()
    return [data.model_copy(update={"path": PAPER + part}) for part in parts] or [data]


def resolved(data: DataConfig) -> DataConfig:
    """These settings with a known set's place, split, columns, texts and labels; other settings as they are.

    A known set fills in only what was left at its default. Raises: ValueError with the nearest name if there is no such
    set, or with what to set where its answers are of another kind, or neither a commit nor a mirror says what it holds.
    """
    name = name_of(data.path)
    if not name:
        return data
    known, default = KNOWN[name], DataConfig()
    answers = {KNOWN[part].answers for part in known.parts or (name,)}
    if data.answers not in answers:
        wanted = "|".join(sorted(answers))
        raise ValueError(
            f"{data.path}: its answers are of another kind than data.answers={data.answers}: set data.answers={wanted},"
            " in a step of its own if others are evaluated too"
        )
    if known.parts:
        known = KNOWN[known.parts[0]]
        place: dict[str, object] = {}
    else:
        place = _place(name, known, data)
    filled: dict[str, object] = {"columns": dict(known.columns), "split": known.split, "subset": known.subset}
    if known.policy and data.texts == default.texts:
        filled |= {"texts": {known.policy: "generations"}, "labels": {known.policy: "labels"}}
    if known.level:
        filled["levels"] = (known.level,)
    untouched = {field: value for field, value in filled.items() if getattr(data, field) == getattr(default, field)}
    return data.model_copy(update={**place, **untouched})


def _place(name: str, known: KnownSet, data: DataConfig) -> dict[str, object]:
    if data.mirror:
        return {"path": f"{data.mirror.rstrip('/')}/{known.mirrored_as or name}"}
    if not known.hub_name:
        raise ValueError(
            f"{data.path}: the hub holds it as code and pickles, which are not run here: set data.mirror to a folder"
            f" with {name}.jsonl (docs/paper.md says how to make it)"
        )
    revision = data.revision or data.revisions.get(known.hub_name, "")
    if not revision:
        raise ValueError(
            f"{data.path}: which version of {known.hub_name} is meant is not known here: name its commit with"
            f" data.revisions.{known.hub_name}=COMMIT, or set data.mirror to a folder that holds it"
        )
    return {"path": f"hf:{known.hub_name}", "revision": revision}


def check_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Nothing, if so many rows are what the set has. Raises: ValueError with both numbers."""
    known = KNOWN[name]
    if known.num_rows and len(rows) not in known.num_rows:
        wanted = " or ".join(map(str, known.num_rows))
        raise ValueError(
            f"{PAPER}{name} has {wanted} rows, and here are {len(rows)}: this is another set, or a part of it"
        )
    if known.level:
        there = sum(str(row.get(dict(known.columns)["level"])) == str(known.level) for row in rows)
        if there != known.num_of_level:
            raise ValueError(
                f"{PAPER}{name} has {known.num_of_level} questions of level {known.level}, and here are {there}"
            )


def picked(name: str, answers: Sequence[Any]) -> list[int]:
    """The places of the rows that the set takes, of rows with these answers. Raises: ValueError if one is not there once."""
    wanted = KNOWN[name].picked
    if not wanted:
        return list(range(len(answers)))
    numbers = [int(str(answer)) if str(answer).isdigit() else None for answer in answers]
    if missing := [number for number in wanted if numbers.count(number) != 1]:
        raise ValueError(
            f"{PAPER}{name} is the questions with the answers {list(wanted)}, and {missing} are not there once"
        )
    return [numbers.index(number) for number in wanted]


OPTIONS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
LETTERS = "ABCD"


def shaped(name: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows with the columns that the set's settings name.

    `options`: the question with its four options, lettered; they are turned by one place from row to row, as in
    OpenCompass, so that every letter is right equally often. `program`: the task with the code that it starts from, and
    its tests as one JSON text.
    """
    for number, row in enumerate(rows, 1):
        match KNOWN[name].shape:
            case "options":
                yield dict(row) | _lettered(row, number)
            case "program":
                yield dict(row) | _task(row)
            case _:
                yield dict(row)


def _lettered(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    if not all(isinstance(row.get(column), str) for column in ("Question", *OPTIONS)):
        return {}  # set aside for the column that is missing
    turned = [OPTIONS[(place + number) % len(OPTIONS)] for place in range(len(OPTIONS))]
    lines = [f"{letter}) {row[column].strip()}" for letter, column in zip(LETTERS, turned, strict=True)]
    return {
        "problem": "\n".join([row["Question"].strip(), "", *lines]),
        "answer": LETTERS[turned.index("Correct Answer")],
    }


def _task(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("public_test_cases", "private_test_cases", "metadata")
    if not isinstance(row.get("question_content"), str) or not all(field in row for field in fields):
        return {}
    start = str(row.get("starter_code") or "").strip()
    problem = row["question_content"].strip()
    return {
        "problem": f"{problem}\n\nStart from this code:\n```python\n{start}\n```" if start else problem,
        "answer": json.dumps({field: row[field] for field in fields}),
    }
