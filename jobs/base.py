"""The base steps of a preset.   ray job submit --working-dir . -- python jobs/base.py PRESET [name=value ...]"""

import sys

from raml_ray.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["base", *sys.argv[1:]]))
