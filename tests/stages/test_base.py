"""The stage that makes the policy a run starts from, where it does not come to an end."""

from pathlib import Path

import pytest

from raml_ray.config import Step
from raml_ray.stages import base
from tests.stages import contexts


@pytest.mark.ray
@pytest.mark.parametrize(
    ("kind", "what"), [("miniature", "the base policy's training"), ("random", "the making of a random policy")]
)
def test_a_policy_that_is_not_there_in_time_ends_the_step(cluster: None, tmp_path: Path, kind: str, what: str) -> None:
    (tmp_path / "set.jsonl").write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    settings = {"base__kind": kind, "base__timeout_s": 0.2, "data__path": str(tmp_path / "set.jsonl")}
    context = contexts.context(tmp_path / "run", Step(name="base", stage="base"), **settings)
    with pytest.raises(
        TimeoutError, match=rf"^step 'base': {what} has not ended within 0.2 s: .*base.timeout_s=0.2 is too short"
    ):
        base.run(context)
    assert not context.folder.exists("policy")
