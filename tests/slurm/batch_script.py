"""A batch script as parsed directives, so that tests do not depend on its text."""

import re
import shlex
from dataclasses import dataclass


@dataclass
class BatchScript:
    """What a script asks of Slurm, sets and runs."""

    directives: dict[str, str]  # option of #SBATCH -> value; "" for a flag
    exports: dict[str, str]  # variable -> value, as bash reads it without expanding variables
    setup: list[str]  # other lines, in order
    command: list[str]  # words of the srun line

    @classmethod
    def parse(cls, text: str) -> "BatchScript":
        """Fails where an option or a variable is set twice, or the script has not one srun line."""
        directives: dict[str, str] = {}
        exports: dict[str, str] = {}
        setup = []
        commands = []
        for line in text.splitlines():
            if match := re.fullmatch(r"#SBATCH --([^=\s]+)(?:=(.*))?", line):
                assert match[1] not in directives, line
                directives[match[1]] = match[2] or ""
            elif match := re.fullmatch(r"export (\w+)=(.*)", line):
                assert match[1] not in exports, line
                (exports[match[1]],) = shlex.split(match[2])
            elif line.startswith("srun "):
                commands.append(shlex.split(line))
            elif line.strip() and not line.startswith("#"):
                setup.append(line)
        (command,) = commands
        return cls(directives, exports, setup, command)

    @property
    def array_size(self) -> int:
        """Tasks; 1 for a plain job."""
        array = self.directives.get("array", "0-0")
        return int(array.split("%")[0].split("-")[1]) + 1

    def srun_options(self) -> dict[str, str]:
        """Options of the form --key=value in the srun line."""
        words = [word[2:].split("=", 1) for word in self.command if re.match("--[^=]+=", word)]
        return dict(words)


def split(text: str) -> list[str]:
    """The scripts in a file that holds several."""
    start = "#!/bin/bash -p"
    return [start + part for part in text.split(start)[1:]]
