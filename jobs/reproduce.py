"""A reproduction, part by part.   ray job submit --working-dir . -- python jobs/reproduce.py NAME [name=value ...]"""

import sys

from raml_ray.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
