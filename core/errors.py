"""Mistakes a user can mend, apart from bugs."""


class UserError(Exception):
    """One or more mistakes in what the user gave: each line says what, where and what to do.

    The command line prints the lines on stderr without a traceback and exits with 2.
    """

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines
