"""Claims to check, as published.

fever            FEVER (Thorne et al. 2018): the claim asks; 'true', 'false'
                 or 'maybe' answers SUPPORTS, REFUTES or NOT ENOUGH INFO
fever_2way       the same without the claims of NOT ENOUGH INFO
fever_symmetric  FeverSymmetric (Schuster et al. 2019), both versions: the
                 claim with its evidence sentence as a passage
"""

from typing import Any

from ralm_jax.data.questions.formats.records import Fields, RecordFormat

_ANSWERS = {'SUPPORTS': 'true', 'REFUTES': 'false', 'NOT ENOUGH INFO': 'maybe'}


def _fever(fields: Fields) -> dict[str, Any]:
  row = {'question': fields.text('claim'), **fields.id('id')}
  name = fields.first('label', 'gold_label')
  if name is None and not fields.require_answers:
    return row  # The blind test set.
  if name is None:
    raise fields.missing('label')
  label = fields.get(name)
  plain = (
    ' '.join(label.upper().replace('_', ' ').replace('-', ' ').split())
    if isinstance(label, str)
    else ''
  )
  if plain not in _ANSWERS:
    raise fields.error(name, f'is {label!r:.40}; expected {", ".join(_ANSWERS)}')
  return {**row, 'answers': [_ANSWERS[plain]]}


def _fever_2way(fields: Fields) -> dict[str, Any] | None:
  row = _fever(fields)
  return None if row.get('answers') == ['maybe'] else row


def _fever_symmetric(fields: Fields) -> dict[str, Any]:
  evidence = fields.text('evidence', 'evidence_sentence', 'sentence1')
  return {**_fever(fields), 'passages': [{'title': '', 'text': evidence}]}


FORMATS = (
  RecordFormat('fever', 'one claim a line', _fever, metrics='label'),
  RecordFormat(
    'fever_2way', 'one claim that is supported or refuted a line', _fever_2way, metrics='label'
  ),
  RecordFormat(
    'fever_symmetric', 'one claim and its evidence a line', _fever_symmetric, metrics='label'
  ),
)
