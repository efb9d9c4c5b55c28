"""A command line parser whose errors are one line, raised where the command prints its others."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Raises ValueError in place of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")
