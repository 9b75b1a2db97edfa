"""How many answers a second the judges decide, next to math-verify called bare: python -m tests.benchmarks.judge [options]

On the same answers, alternating, in one run:

a   math-verify as its README shows it: whole completions, default timeouts, one process, main thread;
b   our pool of two workers (strict), with no answer and with half the answers spelled as the gold one is;
c   as b, with one answer in a hundred that never ends (each costs its CPU deadline);
p   the paper's judge in our pool.

Then: what hangs is bounded (../shared/data/verifier_cases.jsonl, where there is one), and verdicts do not change on a
machine that eight other processes keep busy. Prints Markdown, and writes JSON to --out.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raml_ray.workers.judge import JudgePool

CASES = Path(__file__).parents[3] / "shared" / "data" / "verifier_cases.jsonl"
CPU_SECONDS = 1.0
BUSY_PROCESSES = 8
POISON = ("(x+y+z+w)^{30}", r"(x+y+z+w)^{29}(x+y+z+w+0.0000001)")
FILLER = (
    "We expand the product and collect terms. ",
    "Let $x$ be the number of marbles, so $3x + 4 = 19$. ",
    "Substituting gives $y = \\frac{7}{2}$ and the sum is 12. ",
    "This leaves two cases, of which the first has no solution. ",
)
Item = tuple[str, str]


def kinds(a: int, b: int, c: int) -> list[tuple[str, str, str]]:
    """Ten kinds of (gold answer, the same in another form, another answer), for numbers from 2 to 9."""
    return [
        (str(a * 1000 + b), f"{a},{b:03d}", str(a * 1000 + b + 1)),
        (rf"\frac{{{a}}}{{8}}", f"{a * 125 / 1000:g}", rf"\frac{{{a}}}{{9}}"),
        (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"\sqrt{{{a * b}}}"),
        (f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})", f"(x+{a})(x-{b})"),
        (f"({a},{b})", rf"\left({a}, \frac{{{2 * b}}}{{2}}\right)", f"({b},{a + 20})"),
        (rf"\{{{a},{b + 10},{c + 20}\}}", rf"\{{{c + 20},{a},{b + 10}\}}", rf"\{{{a},{b + 10}\}}"),
        (rf"(-\infty,{a})\cup({a + b},\infty)", rf"({a + b},\infty)\cup(-\infty,{a})", rf"(-\infty,{a}]"),
        (f"y={a}x+{b}", f"y={b}+{a}x", f"y={a}x-{b}"),
        (rf"\frac{{\pi}}{{{a}}}", rf"\pi/{a}", rf"\frac{{\pi}}{{{a + 1}}}"),
        (rf"{a}\sin(x)\cos(x)", rf"\frac{{{a}}}{{2}}\sin(2x)", rf"{a}\sin(x)"),
    ]


def corpus(num: int, *, exact: float, poison: float = 0.0, seed: int = 0) -> list[Item]:
    """(gold, completion of 300 to 4,000 characters): a third of what is not exact is wrong, the rest in another form."""
    rng = random.Random(seed)
    items = []
    for index in range(num):
        gold, other, wrong = kinds(*(rng.randint(2, 9) for _ in range(3)))[index % 10]
        answer = gold if rng.random() < exact else wrong if rng.random() < 1 / 3 else other
        if rng.random() < poison:
            gold, answer = POISON[0], POISON[1].replace("0.0000001", f"0.{rng.randint(1, 9**9)}")
        text = "".join(rng.choice(FILLER) for _ in range(rng.randint(6, 80)))
        items.append((gold, f"{text}\nSo the answer is $\\boxed{{{answer}}}$."))
    return items


def bare(items: list[Item]) -> None:
    """math-verify alone, in this process' main thread."""
    from math_verify import parse, verify

    for gold, text in items:
        verify(parse(f"${gold}$"), parse(text))


def in_a_process(items: list[Item]) -> float:
    """Seconds that a fresh process takes for `bare`, its imports and its first call not counted."""
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_bare_process, args=(items, writer))
    process.start()
    writer.close()
    seconds: float = reader.recv()
    process.join()
    return seconds


def _bare_process(items: list[Item], writer: Any) -> None:
    bare(items[:10])
    start = time.perf_counter()
    bare(items)
    writer.send(time.perf_counter() - start)


def pooled(items: list[Item], judge: str = "strict") -> float:
    """Seconds that a pool of two workers takes, its start not counted."""
    with JudgePool(2, cpu_seconds=CPU_SECONDS, judge=judge) as pool:
        pool.self_test()
        start = time.perf_counter()
        pool.judge(items)
        return time.perf_counter() - start


def throughput(num: int, rounds: int) -> dict[str, list[float]]:
    """Answers a second of every variant, by round; the variants take turns."""
    none, half, poisoned = corpus(num, exact=0), corpus(num, exact=0.5), corpus(num, exact=0, poison=0.01)
    variants: dict[str, Callable[[], float]] = {
        "a: math-verify bare, none exact": lambda: in_a_process(none),
        "b: pool, none exact": lambda: pooled(none),
        "a: math-verify bare, half exact": lambda: in_a_process(half),
        "b: pool, half exact": lambda: pooled(half),
        "c: pool, none exact, 1 % never ends": lambda: pooled(poisoned),
        "p: pool, paper's judge, none exact": lambda: pooled(none, "paper"),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        order = list(variants.items())
        for name, seconds in order if number % 2 == 0 else order[::-1]:
            rates[name].append(num / seconds())
    return rates


def bounded() -> dict[str, Any]:
    """The known cases, one at a time: the most seconds that one took, and how many struck the deadline."""
    if not CASES.exists():
        return {"skipped": f"no {CASES.name} beside this checkout"}
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    found = {}
    for judge in ("strict", "paper"):
        with JudgePool(1, cpu_seconds=CPU_SECONDS, judge=judge) as pool:
            pool.self_test()
            took, verdicts = [], []
            for case in cases:
                start = time.perf_counter()
                verdicts.append(pool.judge([(case["gold"], case["answer"])])[0].verdict.value)
                took.append(time.perf_counter() - start)
        found[judge] = {
            "cases": len(cases),
            "longest_s": max(took),
            "timeouts": verdicts.count("timeout"),
            "errors": verdicts.count("error"),
        }
    return found


def verdicts_under_load(num: int) -> dict[str, Any]:
    """Whether a machine that others keep busy judges the same."""
    items = corpus(num, exact=0.25, poison=0.01, seed=1)

    def judged() -> list[tuple[str, str]]:
        with JudgePool(2, cpu_seconds=CPU_SECONDS, wall_seconds=600) as pool:
            return [(judgement.verdict.value, judgement.reason) for judgement in pool.judge(items)]

    idle = judged()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY_PROCESSES)]
    try:
        loaded = judged()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    differing = sum(one != other for one, other in zip(idle, loaded, strict=True))
    return {"answers": num, "busy_processes": BUSY_PROCESSES, "verdicts_that_differ": differing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1000, help="answers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="", help="file for the figures as JSON")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rates = throughput(arguments.num, arguments.rounds)
    figures: dict[str, Any] = {
        "answers_per_second": rates,
        "bounded": bounded(),
        "load": verdicts_under_load(arguments.num),
    }
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        "b / a, none exact (at least 1)": median["b: pool, none exact"] / median["a: math-verify bare, none exact"],
        "b / a, half exact (at least 1.5)": median["b: pool, half exact"] / median["a: math-verify bare, half exact"],
        "c / b (at least 0.5)": median["c: pool, none exact, 1 % never ends"] / median["b: pool, none exact"],
    }
    figures["ratios"] = ratios
    print("| variant | answers/s, median | lowest | highest |\n|---|---|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {median[name]:.0f} | {min(values):.0f} | {max(values):.0f} |")
    print("\n| ratio of medians | |\n|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.2f} |")
    print(f"\nBounded: {json.dumps(figures['bounded'])}\n\nLoad: {json.dumps(figures['load'])}")
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
