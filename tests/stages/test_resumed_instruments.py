"""An instrument of which a part was lost makes that part again, and nothing else, to the same bytes.

Here are those that differ in what a part is. Of every one tests/stages/test_real_text.py has a fresh worker make a part.
"""

from pathlib import Path
from typing import NamedTuple

import pytest

from raml_ray.config import Step
from raml_ray.stages import analyze, verify
from raml_ray.storage import SUMMARY
from tests.stages import contexts
from tests.stages.test_verify import oracle, verifying

NUM_QUESTIONS = 6


class File(NamedTuple):
    content: bytes
    written: int
    """When, ns."""


@pytest.fixture(scope="module")
def judged(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose step `verify` holds three correct trajectories of each of six questions: three shards of an instrument."""
    root = tmp_path_factory.mktemp("judged") / "run"
    oracle(root, data__limit=NUM_QUESTIONS)
    step = verifying(root, "long")
    contexts.finish(step, verify.run(step))
    return root


def tables(folder: str) -> dict[str, File]:
    """Path inside the step's folder -> what its Parquet file holds."""
    found = {path: path.stat().st_mtime_ns for path in sorted(Path(folder).rglob("*.parquet"))}
    return {str(path.relative_to(folder)): File(path.read_bytes(), written) for path, written in found.items()}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("instrument", "settings", "lost", "num_shards"),
    [
        ("lhat", {"analyze__stride": 4, "lhat__num_foils": 2}, ["curves/shard-000001.parquet"], {"curves": 3}),
        (
            "pseudo_update",
            {"pseudo_update__num_positions": 2},
            ["updates/shard-000000.parquet", "updates/shard-000002.parquet"],
            {"updates": 3},
        ),
        (
            "modes",
            {
                "modes__num_trajectories": 3,
                "modes__num_samples": 1,
                "answers__max_tokens": 4,
                "answers__temperature": 1.0,
                "engine__max_model_len": 256,
            },
            ["cuts/shard-000002.parquet", "answers/trajectories/shard-000001.parquet"],
            {"cuts": 3, "answers/trajectories": 2},
        ),
        (
            "real_updates",
            {
                "analyze__num_correct": 1,
                "real_updates__sgd_steps": 2,
                "real_updates__lora_steps": 2,
                "real_updates__num_noise": 2,
            },
            ["changes/shard-000001.parquet"],
            {"changes": 2},
        ),
        (
            "landscape",
            # Of one trajectory and each plane, nine points in blocks of five and four.
            {
                "analyze__num_questions": 1,
                "analyze__num_correct": 1,
                "landscape__num_points": 3,
                "landscape__points_per_shard": 5,
                "landscape__radii": [0.5],
                "landscape__update_radii": [0.5],
                "landscape__num_prefixes": 2,
            },
            # The second of each: the plane is made again, without the block that comes first.
            ["points/shard-000001.parquet", "points/shard-000003.parquet"],
            {"points": 4},
        ),
        (
            "features",
            {
                "features__results": "miniature",
                "features__rank": 2,
                "features__layers": [2],
                "features__num_random": 1,
                "features__max_tokens": 4,
            },
            ["states/shard-000001.parquet", "projected/responses/shard-000001.parquet"],
            # The whole policy, without what a probe reads, and without a random subspace.
            {"states": 3, "projected/responses": 3},
        ),
    ],
)
@pytest.mark.faults
def test_a_lost_shard_is_made_again_alone_and_to_the_byte(
    judged: Path, instrument: str, settings: dict[str, object], lost: list[str], num_shards: dict[str, int]
) -> None:
    step = Step(name=instrument, stage="analyze", data=("verify",), overrides={"analyze.instrument": instrument})
    asked: dict[str, object] = {"analyze__num_questions": NUM_QUESTIONS, "analyze__num_correct": 3, **settings}
    context = contexts.context(judged, step, **asked)
    undisturbed = contexts.finish(context, analyze.run(context))
    assert undisturbed.counts.rejected == 0
    before = tables(context.folder.path)
    for name, number in num_shards.items():
        assert sum(path.startswith(f"{name}/shard-") for path in before) >= number
    for name in (SUMMARY, *lost):
        Path(context.folder.file(name)).unlink()
    assert analyze.run(context) == undisturbed
    after = tables(context.folder.path)
    assert {name: file.content for name, file in after.items()} == {name: file.content for name, file in before.items()}
    shards = {name for name in before if "/shard-" in name and "chosen" not in Path(name).parts}
    assert {name for name in shards if after[name].written != before[name].written} == set(lost)
