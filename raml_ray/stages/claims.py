"""The paper's claims, each with what decides it and what would break it: written before a seed of a sweep was run.

`python -m raml_ray.stages.claims` prints docs/claims.md, which a test holds against it; the report goes by their ids.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raml_ray.stages.report_outcomes import ERROR, MIN_QUESTIONS, MIN_SEEDS, NEAR_ZERO, Claim, Measurement, joined


@dataclass(frozen=True, slots=True)
class Statement:
    """A claim of the paper, as this project puts it to the test."""

    id: str
    text: str
    source: str
    """Where the paper says so."""
    statistic: str
    """What decides it; positive where the paper is right."""
    control: str
    """What is held against it, so that a positive statistic means what it seems to mean."""
    breaks: str
    """The outcome that would speak against the paper."""
    command: str
    """What brings the figures, on the miniature where that can."""
    elsewhere: str = ""
    """Where else they are to be had, if that has to be said."""
    changed: str = ""
    """When its rule was changed, from what, why, and what it had decided; empty if it never was."""


POLICIES = "raml ablate miniature_policies"
REWORDED = "on 2026-11-27 in what would break it alone, which had named a control that its statistic never asked; no verdict changed"
ON_EVERY_SET = "on each question set, the difference of mean mG-Pass@k"

STATEMENTS = (
    Statement(
        id="lhat-falls",
        text="L-hat falls along a correct trajectory, before its answer is written",
        source="Fig. 3",
        statistic="minus Kendall's tau of L-hat and position, over the prefixes that do not hold the answer yet; mean over"
        " questions",
        control="the whole smoothed curve as the paper draws it stands beside it; so do the same answer along shuffled lines,"
        " along another question's trajectory and spliced into it, and the margin over wrong answers of equal length",
        breaks="L-hat is flat or rises until the answer is written; one that falls as far along the controls would be copying,"
        " which is shown beside and does not decide",
        command="raml run miniature_science seed=1",
        changed=REWORDED,
    ),
    Statement(
        id="lhat-ends-higher-when-wrong",
        text="L-hat ends higher on wrong trajectories than on correct ones, before the answer is written",
        source="Fig. 16",
        statistic="L-hat of wrong minus L-hat of correct trajectories of the same question, at the last prefix without the"
        " answer, nats per answer token",
        control="a wrong trajectory's own answer: if its L-hat falls as a correct one's does, what falls is the loss of"
        " whatever the policy is about to say",
        breaks="both end alike before the answer is written",
        command="raml run miniature_science seed=1",
    ),
    Statement(
        id="sft-beats-base",
        text="SFT is better than base",
        source="Fig. 7",
        statistic=ON_EVERY_SET,
        control="the sets include one with longer chains (`deeper`) and one of a domain that training never shows"
        " (`transfer`): the claim is about all of them",
        breaks="SFT is worse on one of the sets, for example on the other domain",
        command=POLICIES,
    ),
    Statement(
        id="grpo-beats-base",
        text="Zero-GRPO is better than base",
        source="Fig. 7",
        statistic=ON_EVERY_SET,
        control="as sft-beats-base",
        breaks="Zero-GRPO is worse on one of the sets",
        command=POLICIES,
    ),
    Statement(
        id="sft-beats-grpo",
        text="SFT is better than Zero-GRPO",
        source="Table 2",
        statistic=ON_EVERY_SET,
        control="Pass@k stands beside it; the seconds that each policy's training took stand in the report",
        breaks="Zero-GRPO is better on one of the sets",
        command=POLICIES,
    ),
    Statement(
        id="cold-beats-sft",
        text="SFT + GRPO is better than SFT",
        source="Tables 2 and 3",
        statistic=ON_EVERY_SET,
        control="each SFT + GRPO against the very SFT that it started from",
        breaks="SFT alone is better on one of the sets",
        command=POLICIES,
    ),
    Statement(
        id="cold-beats-grpo",
        text="SFT + GRPO is better than Zero-GRPO",
        source="Table 3",
        statistic=ON_EVERY_SET,
        control="both from one base, with equally many GRPO steps; SFT + GRPO has had SFT's training on top",
        breaks="Zero-GRPO is better on one of the sets",
        command=POLICIES,
    ),
    Statement(
        id="sft-steadier",
        text="SFT answers more steadily than Zero-GRPO",
        source="Table 2, section 2.4",
        statistic="mean mG-Pass@k / mean Pass@k of SFT minus that of Zero-GRPO on each question set: of what a policy can"
        " answer at all, how much it answers nearly always",
        control="mG-Pass@k and Pass@k themselves stand beside it. How far a training's outcome varies over seeds would be the"
        " other reading; with three seeds a ratio of two such variances is known up to a factor of 39 either way, which"
        " decides nothing",
        breaks="of what Zero-GRPO can answer, it answers the larger part nearly always",
        command=POLICIES,
        changed="on 2026-11-27: policies that were evaluated differently are not compared here either; no verdict changed",
    ),
    Statement(
        id="sft-more-trajectories",
        text="SFT on more trajectories per question is better",
        source="Fig. 8",
        statistic=f"{ON_EVERY_SET}, of the most trajectories and the fewest",
        control="equally many examples and steps for every number (the paper's padding), drawn from one table of trajectories",
        breaks="one trajectory per question, repeated, is better on one of the sets",
        command="raml ablate miniature_sft_trajectories",
    ),
    Statement(
        id="grpo-more-trajectories",
        text="GRPO that updates on more trajectories per question is better",
        source="Fig. 9",
        statistic=f"{ON_EVERY_SET}, of the most updated trajectories and the fewest, at equally many steps",
        control="grpo-more-trajectories-matched: here the most also train on the most tokens",
        breaks="fewer are better on one of the sets",
        command="raml ablate miniature_grpo_trajectories",
    ),
    Statement(
        id="grpo-more-trajectories-matched",
        text="GRPO that updates on more trajectories per question is better, at equally many trajectories updated on",
        source="Fig. 9",
        statistic="as grpo-more-trajectories, with grpo.compute_matched: a step that updates on fewer of a question's"
        " trajectories asks more questions",
        control="it is one itself: it parts a larger support set from more training",
        breaks="few trajectories of many questions are better on one of the sets",
        command="raml ablate miniature_grpo_matched",
    ),
    Statement(
        id="gradient-variance-falls",
        text="The outer gradient varies less with more updated trajectories",
        source="Fig. 9",
        statistic="log of grpo/gradient_variance with the fewest updated trajectories over that with the most (short of all,"
        " which have none), mean over the policy versions at which both were measured",
        control="drawing n of G without putting back has a variance in proportion to 1/n - 1/G whatever the policy: the same"
        " statistic less the log of that ratio says whether there is more to it than arithmetic",
        breaks="the variance does not fall; that it falls by arithmetic alone is shown beside and does not decide",
        command="raml ablate miniature_grpo_trajectories",
        changed=REWORDED,
    ),
    Statement(
        id="longer-helps",
        text="SFT on longer trajectories is better",
        source="Table 2",
        statistic=f"{ON_EVERY_SET}, of the longest and the shortest third",
        control="one teacher, the same questions, equally many distinct trajectories of each (sft.match_length): the paper's"
        " two sources differ in teacher and length at once",
        breaks="the shorter ones are better on one of the sets",
        command="raml ablate miniature_length",
    ),
    Statement(
        id="reflection-moves-lhat",
        text="Reflection words change L-hat more than what stands at like places",
        source="Fig. 6",
        statistic="share of the windows of its length nearby whose log(L-hat after / before) is smaller in size than the word's"
        " (ties count half), less 1/2, in correct trajectories before the answer; mean over a question's words, then questions",
        control="the windows are it (words like any other give 0 on average); the size less their mean stands beside it, neutral"
        " words at the same places in the interventions' section",
        breaks="words without a role move it as far",
        command="raml run miniature_science seed=1",
        changed="on 2026-11-27, before any run had words enough to be decided: the size less the windows' median, averaged,"
        " is above 0 of words like any other, as sizes are skewed, and held in a third of simulated draws of such words",
    ),
    Statement(
        id="end-of-thought-faster",
        text="An end of thought before any thinking lowers L-hat at once",
        source="Figs. 5, 13, 15",
        statistic="L-hat before the first response token with thinking open, less that with thinking closed, of the same"
        " questions, nats per answer token",
        control="wrong answers of equal length: the fall of the gold answer less that of theirs stands beside it",
        breaks="L-hat with thinking closed is as high, or higher; that wrong answers fall as far is shown beside and does not"
        " decide",
        command="raml ablate miniature_modes 'seed=range(1,4)'",
        changed=REWORDED,
    ),
    Statement(
        id="end-of-thought-riskier",
        text="Answering without thinking is less often right",
        source="Figs. 5 and 11",
        statistic="on each question set, mean accuracy with thinking minus without",
        control="the same policy, questions and number of samples; thinking cut after 8, 16 and 32 tokens stands beside it",
        breaks="answers without thinking are as good on one of the sets, or better",
        command="raml ablate miniature_modes 'seed=range(1,4)'",
    ),
    Statement(
        id="summaries-keep-accuracy",
        text="A summary of a trajectory keeps most of its accuracy",
        source="Fig. 11, section 4.2",
        statistic="accuracy of answers from summaries that do not hold the answer, less half of that from whole trajectories",
        control="the same trajectories cut, and with sentences left out at random, to as many tokens",
        breaks="summaries keep less than half; that what is cut at random keeps as much is shown beside and does not decide",
        command="raml run gsm8k_science policy.path=FOLDER shorter.summary_policy=FOLDER"
        " steps.shorter.analyze.num_questions=40",
        elsewhere="or `paper_fig11_budgets`; not on the miniature, of which no policy can summarise",
        changed=REWORDED,
    ),
    Statement(
        id="pseudo-update-descends",
        text="A token's pseudo-update points down the gradient of the answer's loss, more than any token's does",
        source="Eq. 4",
        statistic="cosine of the exact change of W_v that a token writes with minus the gradient of L-hat, and that cosine less"
        " another token's of the same trajectory; both have to be above zero",
        control="the other token's update, and a step of random direction",
        breaks="the cosine is about zero, or any token's is as large",
        command="raml run miniature_science seed=1",
    ),
    Statement(
        id="pseudo-update-is-training",
        text="A trajectory's pseudo-update is an update that training on the question's answer would make",
        source="Eq. 4, Prop. 2.1",
        statistic="cosine of the trajectory's change of W_v with that of several steps of SGD on L_q, in correct trajectories,"
        " and that cosine less the one with another question's SGD; both have to be above zero; mean over questions",
        control="the other question's SGD, and random changes of the same length; what each change does to L-hat without the"
        " trajectory, and to other questions and answer tokens, stands beside it, as does a distilled adapter",
        breaks="the cosine is about zero, or another question's training is as near",
        command="raml run miniature_science seed=1",
    ),
)
BY_ID = {statement.id: statement for statement in STATEMENTS}


def answered(name: str, measurements: Sequence[Measurement], note: str = "", *, of: str = "") -> Claim:
    """The claim of that id with what its measurements say; `of` is the setting that it was asked of."""
    statement = BY_ID[name]
    text = f"{statement.text} ({of})" if of else statement.text
    outcome = joined([one.outcome for one in measurements if one.decides])
    return Claim(name, text, statement.source, outcome, tuple(measurements), note)


INTRODUCTION = f"""\
# Claims

What the paper (arXiv 2505.19815) claims, as this project puts it to the test: fixed before a seed of the sweeps below was
run, and not touched to make one hold (a rule that was changed says when and why). Seed 0 of the preset `miniature` had been
seen when this was written (README); the shipped sweeps therefore run seeds 1, 2 and 3. `report` decides every claim that its
run has the steps for and lists the others as not asked. This page is printed by `python -m raml_ray.stages.claims`.

## The rule

- Every statistic is a difference that is positive where the paper is right. A claim about policies is a claim about every
  question set; its S comparisons (one per set and pair of policies) share a chance of error of {ERROR:g}: each interval is
  at level 1 - {ERROR:g} / S.
- **Holds**: the interval is above zero in all of them. **Does not hold**: it is below zero in one. **Undecided**: all else.
- Of {MIN_SEEDS} seeds or more, a comparison is paired within each seed (its own base, trajectories, training and questions);
  its interval is Student's t over the seeds' differences. It covers what another seed would change, and with three seeds
  only large differences are decided.
- Of one seed, the interval is the bootstrap over questions of paired differences: it says nothing of other seeds, and
  fewer than {MIN_QUESTIONS} questions decide nothing. Two seeds are shown with their interval and decide nothing.
- Where accuracy is at or below {NEAR_ZERO:g} on both sides of a comparison, it decides nothing.
- Policies that were evaluated differently (sampling, prompt, judge) are not compared, except where that difference is the
  claim.

The miniature can show that a claim does not hold everywhere; that one holds there is no evidence that it holds at scale.
"""


def page() -> str:
    """docs/claims.md."""
    return "\n".join([INTRODUCTION, *_listed()])


def _listed() -> Iterator[str]:
    for statement in STATEMENTS:
        command = f"`{statement.command}`" + (statement.elsewhere and f", {statement.elsewhere}")
        changed = f"- Rule changed {statement.changed}.\n" if statement.changed else ""
        yield (
            f"## {statement.id}\n\n"
            f"**{statement.text}** (paper, {statement.source}).\n\n"
            f"- Statistic: {statement.statistic}.\n"
            f"- Control: {statement.control}.\n"
            f"- What would break it: {statement.breaks}.\n"
            f"- Decided by: {command}.\n{changed}"
        )


if __name__ == "__main__":
    sys.stdout.write(page())
