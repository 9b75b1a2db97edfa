"""A sweep over a preset.   ray job submit --working-dir . -- python jobs/ablate.py PRESET NAME=grid(1,2,4) seed=range(3)"""

import sys

from raml_ray.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["ablate", *sys.argv[1:]]))
