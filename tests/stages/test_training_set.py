"""Which judged trajectories become examples, and that none is counted twice or lost."""

from pathlib import Path

import pytest

from raml_ray import records
from raml_ray.config import ConfigError, Step
from raml_ray.stages import training_set, verify
from raml_ray.stages.context import Context
from tests.stages import contexts
from tests.stages.test_verify import oracle, verifying


def student(root: Path, *data: str, **settings: object) -> Context:
    defaults = {"sft__num_trajectories": 2, "sft__pad_to": 3}
    return contexts.context(root, Step(name="sft", stage="sft", data=data), **(defaults | settings))


@pytest.mark.ray
def test_every_judged_trajectory_is_chosen_filtered_or_too_long(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    made = oracle(root)
    for name in ("verify", "other"):
        context = verifying(root, "long", name=name)
        contexts.finish(context, verify.run(context))
    counts, figures = training_set.write(student(root, "verify"))
    # Two of three trajectories of both questions; the examples repeat them up to three a question.
    assert (counts.rows_in, counts.rows_out, counts.rejected, counts.filtered) == (6, 4, 0, 2)
    assert (figures["examples"], figures["distinct_trajectories"], figures["questions"]) == (6, 4, 2)
    with pytest.raises(ConfigError, match=r"sft.max_length=8 has room for none of 4"):
        training_set.write(student(root, "verify", sft__max_length=8))
    with pytest.raises(ConfigError, match=r"6 trajectories of .* are there more than once"):
        training_set.write(student(root, "verify", "other"))
    shards = made.folder / "trajectories"
    name = shards.names()[0]
    shards.write_table(name, shards.read_table(name).slice(1))  # a row is lost
    counts, _ = training_set.write(student(root, "verify"))
    with pytest.raises(RuntimeError, match="6 rows went in"):
        counts.check()


@pytest.mark.ray
def test_two_questions_of_one_id_are_refused(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    oracle(root)
    short = oracle(root, "short", generate__oracle_length="short")
    context = verifying(root, "long", "short")
    contexts.finish(context, verify.run(context))
    table = short.folder.read_table("questions.parquet").to_pylist()
    table[0]["answer"] = "another"
    short.folder.write_table("questions.parquet", records.table(table, records.QUESTION))
    with pytest.raises(ConfigError, match="is another one than that of an earlier step"):
        training_set.judged(student(root, "verify"))
