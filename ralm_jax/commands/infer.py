"""Infer: answer a file of questions, with or without known answers."""

from __future__ import annotations

from collections.abc import Sequence

from ralm_jax.commands import flags


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Answers from command-line flags, or from gin files."""
  flags.run(argv, prog, __doc__, require_answers=False)
