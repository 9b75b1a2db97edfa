"""A process that hangs is ended and says where; one that goes on, or is no longer watched, is not."""

import subprocess
import sys
from pathlib import Path

HANGS = """
import time
from raml_ray.workers import watchdog
def sampling():
    time.sleep(120)
with watchdog.watching(3, 1.0):
    watchdog.reached("the update of version 7")
    sampling()
"""
GOES_ON = """
import time
from raml_ray.workers import watchdog
watchdog.reached("nobody watches")
watchdog.passed()
with watchdog.watching(0, 3.0):
    for step in range(3):
        watchdog.reached(f"the update of step {step}")
        time.sleep(1.5)
    for batch in range(3):  # of one update
        watchdog.passed()
        time.sleep(1.5)
    watchdog.reached("trajectories", 120.0)
    time.sleep(4.5)
time.sleep(4.5)
print("went on")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100, cwd=root
    )


def test_a_process_that_says_nothing_more_is_ended_and_names_where_it_stood() -> None:
    done = run(HANGS)
    assert done.returncode == 70
    assert done.stderr.startswith(
        "learner 3 has not come on with the update of version 7 for 1 s (train.step_timeout_s=1): it hangs"
    )
    assert "in sampling" in done.stderr


def test_one_that_goes_on_or_has_more_time_or_is_watched_no_more_is_not() -> None:
    done = run(GOES_ON)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")
