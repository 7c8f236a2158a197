"""The record formats by name: what `record_format` may be.

A new one is a file beside this one, which ends with its `FORMATS`, and its name
in `_MODULES`; whoever uses the library registers one with `register`.
"""

from ralm_jax.data.questions.formats import facts, generation, kilt, mmlu, others, qa, temporal
from ralm_jax.data.questions.formats.records import RecordFormat

_MODULES = (qa, facts, kilt, mmlu, generation, temporal)

# Our own layout, as `questions/reading.py` describes it, with what others have of the same kind;
# and published ones.
QA = RecordFormat('qa', 'one JSON object a line', others.row, others.layout)
FORMATS: dict[str, RecordFormat] = {QA.name: QA}


def register(record_format: RecordFormat) -> RecordFormat:
  """Makes a format known by its name; ValueError where another has that."""
  if FORMATS.setdefault(record_format.name, record_format) is not record_format:
    raise ValueError(f'there is a record format {record_format.name!r} already; name yours apart')
  return record_format


for _module in _MODULES:
  for _format in _module.FORMATS:
    register(_format)


def find(name: str) -> RecordFormat:
  """The format of a name; ValueError, with the names there are, if it is none."""
  if name not in FORMATS:
    raise ValueError(f'record_format is {name!r}; it must be one of {", ".join(FORMATS)}')
  return FORMATS[name]
