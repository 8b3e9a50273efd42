"""python -m study: see `study.cli`."""

import sys
from pathlib import Path

# The checkout goes first on sys.path in every process: torchtune's wheel installs a package named
# `recipes`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from core import numeric_environment

    numeric_environment.clear()  # before any library reads them
    from study.cli import import_commands, main

    import_commands(sys.argv[1:])
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] in ("core", "study"):
        raise
    print(
        f"error: {sys.executable} has no package {error.name}; with `make environment` done: "
        ".venv/bin/python -m study; on GPU nodes: pip install -r requirements.txt",
        file=sys.stderr,
    )
    sys.exit(2)
except KeyboardInterrupt:
    print("stopped", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
