"""The sft steps of a preset.   ray job submit --working-dir . -- python jobs/sft.py PRESET [name=value ...]"""

import sys

from raml_ray.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
