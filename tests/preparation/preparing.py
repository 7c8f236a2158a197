"""What the tests of `ralm prepare` share."""

import json

from ralm_jax.data.questions import reading
from ralm_jax.preparation import catalogue, prepare as prepare_lib
from ralm_jax.preparation.prepare import Fetch
from ralm_jax.preparation.producing import Shots


def lines(path, rows):
  """Writes jsonl, folders included; returns the path as text."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def prepare(benchmark, output, *sources, **kwargs):
  """`prepare.prepare` without progress bars, its options by name alone."""

  def group(kind, **names):
    return kind(**{field: kwargs.pop(name) for field, name in names.items() if name in kwargs})

  known = catalogue.find(benchmark, kwargs.pop('variant', None))
  download = kwargs.pop('download', False)
  shots = group(Shots, count='shots', seed='shots_seed', listed='shots_list')
  fetch = group(Fetch, folder='downloads', **{n: n for n in ('sha256', 'addresses', 'patience')})
  options = {name: kwargs.pop(name) for name in prepare_lib.OPTIONS if name in kwargs}
  return prepare_lib.prepare(
    known,
    str(output),
    list(map(str, sources)),
    options=options,
    shots=shots,
    fetch=fetch if download else None,
    progress=False,
    **kwargs,
  )


def questions(path, **kwargs):
  """What a question file holds."""
  return reading.read_questions(str(path), **kwargs)


def texts(path, **kwargs):
  """The questions alone."""
  return [q.question for q in questions(path, **kwargs)]
