"""Replace: give passages of a corpus and its index a new text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ralm_jax.commands import add
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.runs import live_edits
from ralm_jax.runs.live_edits import Edited


def replace(passages: Sequence[Passage], **options: str | float | None) -> Edited:
  """Replaces passages of a served index; see `live_edits.put`.

  A search finds a passage as it was or as it is, never both nor neither.

  Args:
    passages: with ids that the corpus has.
    **options: `checkpoint`, and `index` or `retrieval_address`.
  """
  return live_edits.put(passages, replace=True, known=True, **options)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Replaces from command-line flags."""
  parser = argparse.ArgumentParser(prog=prog, description=__doc__)
  add.add_flags(parser)
  arguments = parser.parse_args(argv)
  if arguments.text and not arguments.id:
    parser.error('give the --id of the passage to replace')
  passages = add.read_passages(parser, arguments)
  edited = replace(passages, checkpoint=arguments.checkpoint, **add.index_options(arguments))
  add.report(arguments, len(passages), 'replaced', edited)
