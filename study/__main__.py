"""python -m study: see `study.cli`."""

import sys
from pathlib import Path

# The checkout goes first on sys.path in every process: torchtune's wheel installs a package named
# `recipes`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from study.cli import main

if __name__ == "__main__":
    sys.exit(main())
