"""What the files of a step that holds trajectories are called, and the rows that are in them."""

TRAJECTORIES = "trajectories"
"""The folder of a step's shards."""
QUESTIONS = "questions.parquet"
"""The questions that shards count by their place."""


def shard_name(index: int) -> str:
    return f"shard-{index:06d}.parquet"


def sample_key(question_id: str, index: int) -> str:
    """What names a question's sample before it has an id."""
    return f"{question_id}#{index}"


def question_of(row_key: str) -> str:
    """The question that a sample's key names."""
    return row_key.rpartition("#")[0]
