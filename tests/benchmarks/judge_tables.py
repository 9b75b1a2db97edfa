"""The tables of docs/judging.md, from the data beside this checkout: python -m tests.benchmarks.judge_tables [--pairs 5000]

GSM8K's published solutions, the gold answers of MATH500, and the known cases, judged by both judges of mathematics.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raml_ray.records import Judgement, Verdict
from raml_ray.workers.judge import JudgePool

DATA = Path(__file__).parents[3] / "shared" / "data"
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
PATTERN = r"(?m)^A:\s*(.+)$"
JUDGES = ("strict", "paper")
Item = tuple[str, str]


def rows(name: str) -> list[dict[str, Any]]:
    """Raises: SystemExit if the data are not there."""
    path = DATA / name
    if not path.exists():
        raise SystemExit(f"{path} is not there: the tables need the data beside this checkout")
    return [json.loads(line) for line in path.read_text().splitlines()]


def boxed(answer: str) -> str:
    return rf"so it is \boxed{{{answer}}}."


def judged(items: list[Item], pattern: str = "") -> dict[str, list[Judgement]]:
    """The judgements of both judges."""
    found = {}
    for judge in JUDGES:
        with JudgePool(2, judge=judge, cpu_seconds=2.0, wall_seconds=300) as pool:
            pool.self_test()
            found[judge] = pool.judge(items, pattern)
    return found


def gsm8k() -> Iterator[str]:
    golds = [row["answer"].rpartition("####")[2].strip() for row in rows("gsm8k/test.jsonl")]
    solutions = rows("gsm8k/example_model_solutions.jsonl")
    keyed = [(model, gold, row[model]) for gold, row in zip(golds, solutions, strict=True) for model in MODELS]
    found = judged([(gold, solution["solution"]) for _, gold, solution in keyed], PATTERN)
    yield "| judge | model | both correct | both wrong | of which no answer | only ours correct | only theirs correct |"
    yield "|---|---|---|---|---|---|---|"
    for judge, judgements in found.items():
        for model in (*MODELS, "together"):
            counts: Counter[str] = Counter()
            for (owner, _, solution), judgement in zip(keyed, judgements, strict=True):
                if model in (owner, "together"):
                    ours, theirs = judgement.verdict is Verdict.CORRECT, solution["is_correct"]
                    counts["both" if ours and theirs else "ours" if ours else "theirs" if theirs else "none"] += 1
                    counts["unread"] += judgement.verdict is Verdict.UNREADABLE and not theirs
            figures = [f"{counts[key]:,}" for key in ("both", "none", "unread", "ours", "theirs")]
            yield f"| {judge} | {model} | " + " | ".join(figures) + " |"


def math500(num_pairs: int) -> Iterator[str]:
    golds = [row["answer"] for row in rows("math500.jsonl")]
    rng = random.Random(0)
    drawn = [tuple(rng.sample(range(len(golds)), 2)) for _ in range(num_pairs)]
    sets: dict[str, list[tuple[str, str]]] = {
        "itself": [(gold, gold) for gold in golds],
        "the next question's": list(zip(golds, golds[1:] + golds[:1], strict=True)),
        f"another's, {num_pairs:,} pairs, seed 0": [(golds[one], golds[other]) for one, other in drawn],
    }
    yield "| gold answer against | judge | correct | wrong | other | of the correct ones not the same text |"
    yield "|---|---|---|---|---|---|"
    notes = []
    for name, pairs in sets.items():
        for judge, judgements in judged([(gold, boxed(answer)) for gold, answer in pairs]).items():
            verdicts = Counter(judgement.verdict for judgement in judgements)
            correct = {
                pair
                for pair, j in zip(pairs, judgements, strict=True)
                if j.verdict is Verdict.CORRECT and len(set(pair)) > 1
            }
            right, wrong = verdicts[Verdict.CORRECT], verdicts[Verdict.WRONG]
            other = len(judgements) - right - wrong
            yield f"| {name} | {judge} | {right:,} | {wrong:,} | {other:,} | {len(correct)} |"
            notes += [f"- equal by {judge}: `{one}` and `{two}`" for one, two in sorted(correct)]
            notes += [
                f"- by {judge} not equal to itself: `{pair[0]}` ({j.verdict.value}, {j.reason})"
                for pair, j in zip(pairs, judgements, strict=True)
                if pair[0] == pair[1] and j.verdict is not Verdict.CORRECT
            ]
    yield ""
    yield from dict.fromkeys(notes)


def known_cases() -> Iterator[str]:
    cases = rows("verifier_cases.jsonl")
    found = judged([(case["gold"], case["answer"]) for case in cases])
    yield "| judge | should be rewarded, is not | should not be rewarded, is | stopped by the deadline | slowest, CPU s |"
    yield "|---|---|---|---|---|"
    for judge, judgements in found.items():
        pairs = list(zip(cases, judgements, strict=True))
        missed = [c["id"] for c, j in pairs if c["expected"] is True and j.verdict is not Verdict.CORRECT]
        false = [c["id"] for c, j in pairs if c["expected"] is False and j.verdict is Verdict.CORRECT]
        stopped = [c["id"] for c, j in pairs if j.verdict is Verdict.TIMEOUT]
        slowest = max(judgement.cpu_seconds for judgement in judgements)
        lists = [f"{len(names)}: {', '.join(names)}" if names else "0" for names in (missed, false, stopped)]
        yield f"| {judge} | " + " | ".join(lists) + f" | {slowest:.1f} |"
    yield "\n| left to a rule | gold answer | answer | strict | paper |\n|---|---|---|---|---|"
    for index, case in enumerate(cases):
        if case["expected"] is None:
            both = " | ".join(f"{found[judge][index].verdict.value}" for judge in JUDGES)
            yield f"| {case['id']} | `{_short(case['gold'])}` | `{_short(case['answer'])}` | {both} |"


def _short(text: str) -> str:
    cut = text if len(text) <= 40 else f"{text[:37]}..."
    return cut.replace("|", r"\|").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5000, help="pairs of different MATH500 questions")
    arguments = parser.parse_args()
    tables = {"GSM8K": gsm8k(), "Known cases": known_cases(), "MATH500": math500(arguments.pairs)}
    for name, lines in tables.items():
        print(f"### {name}\n", *lines, "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
