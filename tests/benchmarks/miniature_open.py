"""What came out of `raml run miniature_open`: the statistics of docs/miniature.md, with 95 % intervals over questions.

    python -m tests.benchmarks.miniature_open runs/miniature_open

Prints Markdown. A line of thinking is wrong if its row does not come to what the row before it does.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from raml_ray import storage
from raml_ray.formulas.metrics import bootstrap_interval
from raml_ray.miniature import task
from raml_ray.miniature.results import LINE
from raml_ray.storage import Folder

SETS = ("in_domain", "transfer")
POLICIES = ("base", "sft", "sft_gentle", "grpo_zero")


def accuracy(folder: Folder, name: str) -> dict[str, float]:
    """Question -> share of its samples that are right, of one set."""
    rows = folder.read_table("per_question.parquet").to_pylist()
    return {row["question_id"]: row["accuracy"] for row in rows if row["set"] == name}


def told(values: Mapping[str, float], *, scale: float = 100, digits: int = 1) -> str:
    if not values:
        return "-"
    found = bootstrap_interval(list(values.values()), num_resamples=2000, seed=0)
    return f"{scale * found.mean:.{digits}f} [{scale * found.low:.{digits}f}, {scale * found.high:.{digits}f}]"


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {key: one[key] - other[key] for key in one if key in other}


def steps(text: str, domain: str) -> Iterator[tuple[bool, bool]]:
    """Of every line but the first and those behind `Wait` or `Alternatively`: whether it is right, and whether `Wait` follows."""
    lines = [
        (match.group(1) or "", tuple(None if slot == "_" else int(slot) for slot in match.group(2).split()))
        for match in LINE.finditer(text.partition("</think>")[0])
    ]
    for place in range(1, len(lines)):
        word, state = lines[place]
        if not word:
            follows = place + 1 < len(lines) and lines[place + 1][0] == "Wait"
            yield task.value(state, domain) == task.value(lines[place - 1][1], domain), follows


def waits(folder: Folder) -> dict[str, tuple[float, float] | None]:
    """Question in the domain -> shares of wrong and of right lines after which `Wait` comes; those without either left out."""
    questions = storage.questions(folder)
    counts: dict[str, dict[bool, list[bool]]] = defaultdict(lambda: {True: [], False: []})
    for row in storage.trajectories(folder).to_pylist():
        question = questions[row["question_id"]]
        if question.source == "in_domain":
            for is_right, follows in steps(row["text"], question.domain):
                counts[question.question_id][is_right].append(follows)
    return {
        key: (fmean(lines[False]), fmean(lines[True])) if lines[True] and lines[False] else None
        for key, lines in counts.items()
    }


def plain(folder: Folder) -> dict[str, float]:
    """Question of the other domain -> share of its wrong answers that are the plain sum."""
    questions = storage.questions(folder)
    found: dict[str, list[float]] = defaultdict(list)
    for row in storage.verified(folder, [folder]):
        question = questions[row["question_id"]]
        if question.source == "transfer" and row["verdict"] == "wrong":
            state, _ = task.parse(question.problem)
            found[question.question_id].append(float(row["extracted"] == str(task.value(state, "sum"))))
    return {key: fmean(values) for key, values in found.items()}


def curves(run: Folder, policy: str) -> Iterator[str]:
    groups: dict[str, Any] = storage.summary(run / f"lhat_{policy}")["figures"]["groups"]
    for name, group in groups.items():
        if group["num"]:
            cells = []
            for column in ("start", "before_leak", "drop_before_leak", "tau_before_leak", "margin_before_leak"):
                value = group[column]
                cells.append("-" if value is None else f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]")
            yield f"| {policy}, {name} ({group['num']}) | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of the run")
    run = Folder(storage.absolute(parser.parse_args().run))
    print(
        "| policy | in domain, % | transfer, % | over base, transfer | wrong transfer answers that are plain sums, % |"
    )
    print("|---|---|---|---|---|")
    whole = {policy: run / f"evaluate_{policy}" for policy in POLICIES}
    for policy, folder in whole.items():
        inside, across = (accuracy(folder, name) for name in SETS)
        gain = difference(across, accuracy(whole["base"], "transfer"))
        print(f"| {policy} | {told(inside)} | {told(across)} | {told(gain)} | {told(plain(folder))} |")
    print(
        "\n| policy | `Wait` after wrong lines, % | after right ones, % | difference | accuracy with less without `Wait` |"
    )
    print("|---|---|---|---|---|")
    for policy in POLICIES:
        if policy != "sft":
            shares = {key: value for key, value in waits(whole[policy]).items() if value}
            wrong, right = ({key: value[place] for key, value in shares.items()} for place in (0, 1))
            helped = difference(
                *(accuracy(run / f"evaluate_{name}", SETS[0]) for name in (policy, f"{policy}_no_wait"))
            )
            print(f"| {policy} | {told(wrong)} | {told(right)} | {told(difference(wrong, right))} | {told(helped)} |")
    print("\n| L-hat of | start, nats | before the leak | drop before it | tau before it | margin before it |")
    print("|---|---|---|---|---|---|")
    for policy in POLICIES:
        if policy != "sft":
            print("\n".join(curves(run, policy)))


if __name__ == "__main__":
    main()
