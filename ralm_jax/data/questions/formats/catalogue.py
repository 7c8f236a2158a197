"""Published question files, record by record, in our own layout.

  qa             one object a line, as `questions.py` describes
  nq_open, triviaqa, web_questions, curated_trec            `qa_formats.py`
  fever, fever_2way, fever_symmetric                      `fact_formats.py`
  kilt_...       the eleven sets of KILT                   `kilt_format.py`
  mmlu                                                     `mmlu_format.py`
  ms_marco, jeopardy                                `generation_formats.py`
  templama, dated                                     `temporal_formats.py`

Each of these modules says what it expects of a file and what becomes of its
fields.
"""

from collections.abc import Callable, Iterator

from ralm_jax.data.questions.formats import facts, generation, kilt, mmlu, qa, records, temporal
from ralm_jax.data.questions.formats.records import Record

_MODULES = (qa, facts, kilt, mmlu, generation, temporal)
_READERS = {name: module.records for module in _MODULES for name in module.EXPECTED}

# What a file of each format holds, for errors.
EXPECTED = {
  'qa': 'one JSON object a line',
  **{name: text for module in _MODULES for name, text in module.EXPECTED.items()},
}
RECORD_FORMATS = tuple(EXPECTED)
# What each is scored by, see `evaluation/scores/by_task.py`; '' leaves it open.
METRICS = {
  'fever': 'label',
  'fever_2way': 'label',
  'fever_symmetric': 'label',
  'ms_marco': 'generation',
  'jeopardy': 'question_generation',
  'mmlu': 'multiple_choice',
  **dict.fromkeys(kilt.EXPECTED, 'kilt'),
}


def read_records(
  path: str,
  record_format: str,
  require_answers: bool = True,
  on_error: Callable[[ValueError], None] | None = None,
) -> Iterator[Record]:
  """Reads a file of a published format.

  Args:
    path: plain or gzipped.
    record_format: one of `RECORD_FORMATS`.
    require_answers: whether a record without an answer is an error.
    on_error: called with the error of a malformed record, which is left out;
      None raises it. A file that is damaged as a whole (its compression, a JSON
      array that is broken) is raised in any case.

  Raises:
    ValueError: an unknown format, a damaged file, or a malformed record; the
      message names file and line or record.
  """
  if record_format not in EXPECTED:
    raise ValueError(
      f'record_format is {record_format!r}; it must be one of {", ".join(RECORD_FORMATS)}'
    )
  if record_format == 'qa':
    yield from records.lines(path, on_error)
  else:
    yield from _READERS[record_format](path, record_format, require_answers, on_error)
