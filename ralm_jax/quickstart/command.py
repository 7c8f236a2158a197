"""Quickstart: the whole loop on the documentation of your own Python.

About 6,000 docstrings of the standard library are the corpus; a docstring's
first sentence asks and the qualified name answers. A tiny model is trained from
scratch and answers questions about objects it was never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
import logging

from ralm_jax.commands import flags


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Runs the quickstart from command-line flags."""
  parser = flags.Parser(prog, __doc__, compiles=True)
  add = parser.add_argument
  add('--output', required=True, metavar='DIR', help='folder for all that is made')
  add(
    '--smoke',
    action='store_true',
    help='sizes for a test of a minute: everything runs, little is learnt',
  )
  add('--verbose', action='store_true', help='show every report')
  arguments = parser.parse_args(argv)
  from ralm_jax.quickstart import main as quickstart, recipe

  if not arguments.verbose:
    logging.getLogger().setLevel(logging.WARNING)
  chosen = recipe.SMOKE if arguments.smoke else recipe.Recipe()
  quickstart.Quickstart(arguments.output, chosen).run()
