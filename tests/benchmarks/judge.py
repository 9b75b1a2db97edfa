"""How many answers a second the judges decide, next to math-verify called bare: python -m tests.benchmarks.judge [options]

On the same answers, no two of them the same, alternating, in one run, with the limits that the settings have:

a   math-verify as its README shows it: whole completions, default timeouts, one process, main thread;
b   our pool of two workers (strict), with no answer and with half the answers spelled as the gold one is;
c   as b, with one answer in a hundred that hangs math-verify, of ten known classes in turn;
d   as b, with one answer in a hundred that nothing but the CPU deadline ends;
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raml_ray.settings import VerifyConfig
from raml_ray.text.golden import Kind
from raml_ray.workers.judge import JudgePool

CASES = Path(__file__).parents[3] / "shared" / "data" / "verifier_cases.jsonl"
BUSY_PROCESSES = 8
FILLER = (
    "We expand the product and collect terms. ",
    "Let $x$ be the number of marbles, so $3x + 4 = 19$. ",
    "Substituting gives $y = \\frac{7}{2}$ and the sum is 12. ",
    "This leaves two cases, of which the first has no solution. ",
)
Item = tuple[str, str]


def endless(n: int) -> Item:
    """(gold, answer) that costs the whole CPU deadline: a product of sums to expand."""
    return "(x+y+z+w)^{30}", rf"(x+y+z+w)^{{29}}(x+y+z+w+0.{n + 1:07d})"


def known_bomb(n: int) -> Item:
    """One that hangs math-verify, of ten classes in turn: the last is `endless`, the others are known by their looks."""
    answers = (
        rf"9^{{9^{{9^{{{n + 5}}}}}}}",
        rf"2^{{{10**9 + n}}}",
        f"{10**7 + n}!",
        rf"\binom{{{10**7 + n}}}{{5000000}}",
        rf"\sum_{{k=1}}^{{{10**9 + n}}}\frac{{1}}{{k^2+1}}",
        rf"\int_0^1\sin(x^x)e^{{\cos(x^{n + 2})}}dx",
        rf"\sqrt{{{n + 2}+" * 200 + "2" + "}" * 200,
        "(" * 900 + str(n + 2) + ")" * 900,
        rf"\det\begin{{pmatrix}}a&b&c&d\\e&f&g&h\\i&j&k&l\\m&n&o&p^{n + 2}\end{{pmatrix}}",
    )
    return endless(n) if n % 10 == 9 else ("1", answers[n % 10])


def kinds(a: int, b: int, c: int) -> list[tuple[str, str, str]]:
    """Ten kinds of (gold answer, the same in another form, another answer), for numbers from 2 to 99."""
    return [
        (str(a * 1000 + b), f"{a},{b:03d}", str(a * 1000 + b + 1)),
        (rf"\frac{{{a}}}{{8}}", f"{a * 125 / 1000:g}", rf"\frac{{{a}}}{{9}}"),
        (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"\sqrt{{{a * b}}}"),
        (f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})", f"(x+{a})(x-{b})"),
        (f"({a},{b})", rf"\left({a}, \frac{{{2 * b}}}{{2}}\right)", f"({b},{a + 20})"),
        (rf"\{{{a},{b + 100},{c + 200}\}}", rf"\{{{c + 200},{a},{b + 100}\}}", rf"\{{{a},{b + 100}\}}"),
        (rf"(-\infty,{a})\cup({a + b},\infty)", rf"({a + b},\infty)\cup(-\infty,{a})", rf"(-\infty,{a}]"),
        (f"y={a}x+{b}", f"y={b}+{a}x", f"y={a}x-{b}"),
        (rf"\frac{{\pi}}{{{a}}}", rf"\pi/{a}", rf"\frac{{\pi}}{{{a + 1}}}"),
        (rf"{a}\sin(x)\cos(x)", rf"\frac{{{a}}}{{2}}\sin(2x)", rf"{a}\sin(x)"),
    ]


def corpus(num: int, *, exact: float, poison: Sequence[Item] = (), seed: int = 0) -> list[Item]:
    """(gold, completion of 300 to 4,000 characters), no two with the same gold and final answer.

    A third of what is not exact is wrong, the rest in another form. The poisonous pairs stand among them.
    """
    rng = random.Random(seed)
    pairs: dict[Item, None] = {}
    while len(pairs) < num - len(poison):
        gold, other, wrong = kinds(*(rng.randint(2, 99) for _ in range(3)))[len(pairs) % 10]
        pairs[gold, gold if rng.random() < exact else wrong if rng.random() < 1 / 3 else other] = None
    shuffled = [*pairs, *poison]
    rng.shuffle(shuffled)
    return [(gold, _completion(answer, rng)) for gold, answer in shuffled]


def _completion(answer: str, rng: random.Random) -> str:
    text = "".join(rng.choice(FILLER) for _ in range(rng.randint(6, 80)))
    return f"{text}\nSo the answer is $\\boxed{{{answer}}}$."


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


def pool_of(judge: Kind, num_workers: int = 2) -> JudgePool:
    """With the limits that the settings have."""
    shipped = VerifyConfig()
    return JudgePool(
        num_workers,
        cpu_seconds=shipped.cpu_seconds,
        wall_seconds=shipped.wall_seconds,
        max_answer_chars=shipped.max_answer_chars,
        judge=judge,
    )


def pooled(items: list[Item], judge: Kind = "strict") -> tuple[float, float]:
    """Seconds, and of CPU time, that a pool of two workers takes, its start not counted."""
    with pool_of(judge) as pool:
        pool.self_test()
        start = time.perf_counter()
        judgements = pool.judge(items)
        return time.perf_counter() - start, sum(judgement.cpu_seconds for judgement in judgements)


def throughput(num: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Answers a second of every variant, by round, in turns; and a thousand answers' CPU seconds, of pools."""
    none, half = corpus(num, exact=0), corpus(num, exact=0.5)
    known = corpus(num, exact=0, poison=[known_bomb(n) for n in range(num // 100)])
    worst = corpus(num, exact=0, poison=[endless(n) for n in range(num // 100)])
    variants: dict[str, Callable[[], float | tuple[float, float]]] = {
        "a: math-verify bare, none exact": lambda: in_a_process(none),
        "b: pool, none exact": lambda: pooled(none),
        "a: math-verify bare, half exact": lambda: in_a_process(half),
        "b: pool, half exact": lambda: pooled(half),
        "c: pool, none exact, 1 % known bombs": lambda: pooled(known),
        "d: pool, none exact, 1 % to the deadline": lambda: pooled(worst),
        "p: pool, paper's judge, none exact": lambda: pooled(none, "paper"),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {}
    for number in range(rounds):
        order = list(variants.items())
        for name, measured in order if number % 2 == 0 else order[::-1]:
            took = measured()
            if isinstance(took, tuple):
                cpu.setdefault(name, []).append(1000 * took[1] / num)
            rates[name].append(num / (took[0] if isinstance(took, tuple) else took))
    return rates, {name: statistics.median(values) for name, values in cpu.items()}


def ordinary(num: int) -> dict[str, float]:
    """CPU seconds of ordinary answers: whether the deadline is far from all of them."""
    with pool_of("strict") as pool:
        pool.self_test()
        took = sorted(judgement.cpu_seconds for judgement in pool.judge(corpus(num, exact=0)))
    return {"median_cpu_s": took[num // 2], "p99_cpu_s": took[num * 99 // 100], "longest_cpu_s": took[-1]}


def bounded() -> dict[str, Any]:
    """The known cases, one at a time: the most seconds that one took, and how many struck the deadline."""
    if not CASES.exists():
        return {"skipped": f"no {CASES.name} beside this checkout"}
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    found = {}
    judges: tuple[Kind, ...] = ("strict", "paper")
    for judge in judges:
        with pool_of(judge, 1) as pool:
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
    items = corpus(num, exact=0.25, poison=[endless(n) for n in range(num // 100)], seed=1)

    def judged() -> list[tuple[str, str]]:
        with pool_of("strict") as pool:
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
    rates, cpu = throughput(arguments.num, arguments.rounds)
    figures: dict[str, Any] = {
        "answers_per_second": rates,
        "cpu_s_per_thousand": cpu,
        "ordinary": ordinary(arguments.num),
        "bounded": bounded(),
        "load": verdicts_under_load(arguments.num),
    }
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        "b / a, none exact (at least 1)": median["b: pool, none exact"] / median["a: math-verify bare, none exact"],
        "b / a, half exact (at least 1.5)": median["b: pool, half exact"] / median["a: math-verify bare, half exact"],
        "c / b (at least 0.5)": median["c: pool, none exact, 1 % known bombs"] / median["b: pool, none exact"],
        "c / b by CPU time": cpu["b: pool, none exact"] / cpu["c: pool, none exact, 1 % known bombs"],
        "d / b": median["d: pool, none exact, 1 % to the deadline"] / median["b: pool, none exact"],
        "d / b by CPU time": cpu["b: pool, none exact"] / cpu["d: pool, none exact, 1 % to the deadline"],
    }
    figures["ratios"] = ratios
    print("| variant | answers/s, median | lowest | highest | CPU s per 1,000 |\n|---|---|---|---|---|")
    for name, values in rates.items():
        spent = f"{cpu[name]:.1f}" if name in cpu else "-"
        print(f"| {name} | {median[name]:.0f} | {min(values):.0f} | {max(values):.0f} | {spent} |")
    print("\n| ratio of medians | |\n|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.2f} |")
    print(f"\nOrdinary answers: {json.dumps(figures['ordinary'])}")
    print(f"\nBounded: {json.dumps(figures['bounded'])}\n\nLoad: {json.dumps(figures['load'])}")
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
