"""Infer: answer a file of questions, with or without known answers."""
from __future__ import annotations

from collections.abc import Sequence
import sys

from ralm_jax import eval_flags


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Answers from command-line flags, or from gin files."""
  eval_flags.run(argv, prog, __doc__, require_answers=False)


if __name__ == '__main__':
  from ralm_jax import cli

  sys.exit(cli.main(['infer', *sys.argv[1:]]))
