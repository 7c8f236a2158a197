"""What the tests of `ralm prepare` share."""

import json

from ralm_jax.commands import prepare as prepare_lib
from ralm_jax.data.questions import reading


def lines(path, rows):
  """Writes jsonl, folders included; returns the path as text."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def prepare(benchmark, output, *sources, **kwargs):
  """`prepare.prepare` without progress bars."""
  return prepare_lib.prepare(
    benchmark, output=str(output), sources=list(map(str, sources)), progress=False, **kwargs
  )


def questions(path, **kwargs):
  """What a question file holds."""
  return reading.read_questions(str(path), **kwargs)


def texts(path, **kwargs):
  """The questions alone."""
  return [q.question for q in questions(path, **kwargs)]
