"""Shared features of a tiny policy: which states are read, which questions are held out, what is answered and counted."""

from pathlib import Path

import numpy as np
import pytest

from raml_ray.config import Config, ConfigError, Step, override
from raml_ray.records import Verdict
from raml_ray.stages import verify
from raml_ray.stages.instruments import chosen, features, features_figures, features_probes
from raml_ray.workers import residual_stream
from tests.stages import contexts
from tests.stages.test_analyze import row
from tests.stages.test_instruments import analyzed, panels, shown
from tests.stages.test_verify import oracle, verifying

TEXT = "<think>\n _ 7 9 5\n _ _ 16 5\n _ _ _ 21\n</think>\n\n**Final Answer**\n\\boxed{21}"
SMALL = {"features.results": "miniature", "features.rank": 2, "features.layers": [2]}


def test_states_are_read_at_the_token_before_each_partial_result(tmp_path: Path) -> None:
    config = override(Config(), SMALL | {"features.layers": [1, 2]})
    policy = chosen.opened(contexts.policy(tmp_path / "policy"), config)
    asked = row(TEXT, domain="sum")
    found = list(features.States(policy, config).of(asked))
    # <think> \n _ 7 9 5 \n _ _ [16] 5 \n _ _ _ [21]
    assert [(each["position"], each["result"], each["class"]) for each in found] == [(9, "16", 6), (15, "21", 1)]
    prompt_ids, ids = chosen.token_ids(policy.tokenizer, asked, config.prompt)
    layers = residual_stream.layers(policy.model, ())
    expected_LKD = residual_stream.states(policy.model, layers, [*prompt_ids, *ids], [len(prompt_ids) + 8])
    state = np.frombuffer(found[0]["state"], dtype=np.float32).reshape(2, 32)
    np.testing.assert_allclose(state, expected_LKD[:, 0], atol=1e-5)


def test_a_trajectory_without_a_whole_number_is_set_aside(tmp_path: Path) -> None:
    config = override(Config(), SMALL | {"features.results": "= (\\S+)"})
    measure = features.States(chosen.opened(contexts.policy(tmp_path / "policy"), config), config)
    with pytest.raises(ValueError, match="no whole number"):
        list(measure.of(row("so x = half, and y = 0.5", domain="sum")))


def test_settings_that_no_probe_can_have_are_refused() -> None:
    for changes, message in (
        ({"features.rank": 10}, r"features\.rank=10.*set it to at most 9"),
        ({"features.results": "="}, "has no group"),
        ({"features.results": "("}, "no regular expression"),
        ({"features.layers": [1, 1]}, "names one twice"),
        ({"features.layers": [0]}, "the first layer is 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            override(Config(), changes)


def states(domain: str, num_questions: int, *, shift: int = 0) -> list[chosen.Row]:
    """States of classes 0, 1, 2, 0, 1, 2, 0 that say so in the first three of eight dimensions, and their question in another."""
    found = []
    for question in range(num_questions):
        for number in range(7):
            state = np.zeros(8, dtype=np.float32)
            state[(number + shift) % 3] = 1.0
            state[4] = question
            found.append(
                {
                    "question_id": f"{domain}{question}",
                    "domain": domain,
                    "class": number % 3,
                    "layers": [4],
                    "state": state.tobytes(),
                }
            )
    return found


def trained(tmp_path: Path, rows: list[chosen.Row]) -> features_probes.Trained:
    settings = {"features__num_classes": 3, "features__rank": 2, "features__penalty": 1e-6}
    step = Step(name="a", stage="analyze", overrides={"analyze.instrument": "features"})
    context = contexts.context(tmp_path / "run", step, **settings)
    asked = [{**each, "problem": "p", "answer": "a"} for each in rows]
    return features_probes.trained(context, asked, rows)


def test_probes_transfer_where_domains_share_their_features_and_only_there(tmp_path: Path) -> None:
    same = trained(tmp_path, states("x", 4) + states("y", 4))
    found = same.figures["probes"]["4"]["trained_on"]["x"]
    assert same.figures["domains"]["x"] == {"questions": 4, "held_out": 2, "results": 28, "results_held_out": 14}
    for other in ("x", "y"):
        assert found["on"][other]["accuracy"]["mean"] == 1.0
        assert found["on"][other]["most_frequent"]["mean"] == pytest.approx(3 / 7)
        # another probe finds some of it again: orthogonal to what one reads is not independent of the class
        assert 3 / 7 < found["on"][other]["left"]["mean"] < 1.0
    moved = trained(tmp_path, states("x", 4) + states("y", 4, shift=1))
    found = moved.figures["probes"]["4"]["trained_on"]["x"]
    assert (found["on"]["x"]["accuracy"]["mean"], found["on"]["y"]["accuracy"]["mean"]) == (1.0, 0.0)


def test_questions_that_were_held_out_are_asked_without_every_subspace_and_with_all(tmp_path: Path) -> None:
    found = trained(tmp_path, states("x", 4) + states("y", 2))
    names = ["none", "probe:x", "probe:y", "random:0", "random:1", "random:2"]
    assert [block["block"] for block in found.blocks] == [
        f"{0 if name == 'none' else 4}/{name}/{domain}" for domain in ("x", "y") for name in names
    ]
    asked = {block["domain"]: {question["question_id"] for question in block["questions"]} for block in found.blocks}
    assert [len(asked[domain]) for domain in ("x", "y")] == [2, 1]
    basis_DR, mean_D = features_probes.unpacked(found.blocks[1])
    assert (basis_DR.shape, mean_D[:4].tolist()) == ((8, 2), pytest.approx([3 / 7, 2 / 7, 2 / 7, 0.0]))
    with pytest.raises(ConfigError, match=r"domain 'x': features\.rank=2, but a probe reads 1 directions"):
        trained(tmp_path, [row for row in states("x", 4) if row["class"] < 2])
    with pytest.raises(ConfigError, match="has 1 question with partial results, and needs two"):
        trained(tmp_path, states("x", 4) + states("y", 1))


def answers(subspace: str, domain: str, verdicts: dict[str, Verdict], layer: int | None = 4) -> list[chosen.Row]:
    head = {"subspace": subspace, "domain": domain, "layer": layer}
    return [head | {"question_id": key, "verdict": verdict.value} for key, verdict in verdicts.items()]


def test_a_loss_is_what_a_random_subspace_does_not_cost() -> None:
    right, wrong = Verdict.CORRECT, Verdict.WRONG
    rows = [
        *answers("none", "y", {"a": right, "b": right, "c": Verdict.TIMEOUT}, None),
        *answers("probe:x", "y", {"a": wrong, "b": Verdict.UNREADABLE, "c": right}),
        *answers("random:0", "y", {"a": right, "b": right, "c": right}),
        *answers("random:1", "y", {"a": right, "b": wrong, "c": Verdict.ERROR}),
    ]
    found = features_figures.projected(rows, seed=0)
    assert found["whole"]["y"]["mean"] == 1.0
    cell = found["projected"]["4"]["x"]["y"]
    assert cell["probe"]["mean"] == pytest.approx(1 / 3)
    # 1, 1/2 and 1
    assert cell["random"]["mean"] == pytest.approx(2.5 / 3)
    assert cell["excess"]["mean"] == pytest.approx((1.0 + 0.5 + 0.0) / 3)


@pytest.mark.ray
def test_features_are_looked_for_in_what_a_run_has_made_and_the_page_shows_them(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    oracle(root, data__limit=6, miniature__transfer_fraction=0.5)
    judged = verifying(root, "long")
    contexts.finish(judged, verify.run(judged))
    settings = {name.replace(".", "__"): value for name, value in SMALL.items()}
    step = analyzed(root, "features", "verify", **settings, features__num_random=1, features__max_tokens=8)
    counts = step.figures["domains"]
    # analyze.num_questions=2 of each domain
    assert {name: (of["questions"], of["held_out"]) for name, of in counts.items()} == {
        "sum": (2, 1),
        "sum_mod_10": (2, 1),
    }
    rows = (step.folder / "projected" / "responses").read_tables("shard-", features.RESPONSES.schema).to_pylist()
    # the whole policy, two probes and a random subspace, in two domains
    assert len(rows) == 2 * (1 + 2 + 1)
    assert {each["verdict"] for each in rows} <= {"wrong", "unreadable", "correct"}
    page = shown(step)
    assert "sum -&gt; sum_mod_10" in page.tables
    assert panels(page) == {"probes", "in the domain", "transfer"}
