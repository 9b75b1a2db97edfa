"""The generate steps of a preset.   ray job submit --working-dir . -- python jobs/generate.py PRESET [name=value ...]"""

import sys

from raml_ray.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
