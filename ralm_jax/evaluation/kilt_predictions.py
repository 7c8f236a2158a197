"""Predictions as a file that KILT's scorer and its hidden tests take.

One object a line: the question's id and one output, the answer with the
Wikipedia pages it was given, best first:

  {"id": "...", "output": [{"answer": "...",
                            "provenance": [{"wikipedia_id": "...", "title": "..."}]}]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import logging
import os
from typing import Any

from ralm_jax.data.corpus import passages as passages_lib
from ralm_jax.data.option_values import PAGE_FIELDS
from ralm_jax.data.questions.formats import kilt
from ralm_jax.evaluation import summary
from ralm_jax.files import atomic_files, json_records


@dataclasses.dataclass(frozen=True)
class PageOptions:
  """How passages name the pages that KILT's provenance means."""

  #: Where a passage names its page: 'document', 'id' or 'title'; 'auto' is its document where it
  #: has one, else its id.
  page_field: str = 'auto'
  #: Characters of which the first ends the page's id within a passage's: with '_' the passage
  #: '290_3' is of page 290. Without any the whole id is the page's.
  page_separators: str = ''

  def __post_init__(self):
    if self.page_field not in PAGE_FIELDS:
      raise ValueError(
        f'the page field is {self.page_field!r}; it must be one of {", ".join(PAGE_FIELDS)}'
      )

  def page_of(self, passage: Mapping[str, Any]) -> str:
    """The page of a passage of a prediction record."""
    return page_of(passage, self.page_field, self.page_separators)


def page_of(passage: Mapping[str, Any], field: str = 'auto', separators: str = '') -> str:
  """The page a passage of a prediction is of, see `PageOptions`.

  The number of a part that `max_words` cut ('#1') belongs to no page's id. A separator that an id
  begins with ends nothing.
  """
  document = str(passage.get('document') or '').strip()
  if field == 'document' or (field == 'auto' and document):
    return document
  if field == 'title':
    return str(passage.get('title') or '').strip()
  # Predictions say of what an id ending in a number is a part, but older ones.
  whole = passage.get('part_of') or passages_lib.source_id(str(passage.get('id') or '').strip())
  identifier = str(whole).strip()
  # What begins with a separator has no page before it: the whole id it is.
  ends = [end for character in separators if (end := identifier.find(character)) > 0]
  return identifier[: min(ends)] if ends else identifier


def write(
  predictions: str | os.PathLike,
  output: str | os.PathLike,
  *,
  record_format: str,
  pages: PageOptions = PageOptions(),
  with_text: bool = False,
) -> int:
  """Turns a predictions.jsonl into a file of KILT's; returns how many there are.

  An existing output is replaced, atomically. Of 'kilt_fever' true and false go back to
  SUPPORTS and REFUTES; any other text stays as it is. `with_text` writes every passage with its
  text, which the scorer's answer-in-context needs; else each page stands once.

  Raises:
    ValueError: an unknown format or field, the output is the predictions, no prediction at all, a
      malformed one, an id twice, or passages none of which names a page.
  """
  if record_format not in kilt.EXPECTED:
    raise ValueError(f"record_format is {record_format!r}; KILT's are {', '.join(kilt.EXPECTED)}")
  path = os.fspath(predictions)
  if os.path.realpath(output) == os.path.realpath(path):
    raise ValueError(
      f'{os.fspath(output)}: the output would replace the predictions that it is made of; '
      'name another file'
    )
  seen: dict[str, int] = {}
  known: list[dict[str, Any]] = []  # of questions whose pages are known
  with atomic_files.replacing(os.fspath(output)) as aside:
    with open(aside, 'w', encoding='utf-8') as file:
      for line, record in json_records.read_json_lines(path):
        where = f'{path}:{line}'
        _check(record, where)
        if record['id'] in seen:
          raise ValueError(
            f"{where}: field 'id': {record['id']!r} is already the id of line "
            f'{seen[record["id"]]}; a KILT file has one prediction a question'
          )
        seen[record['id']] = line
        shown = record.get('passages') or []
        if record.get('provenance'):
          found = list(map(pages.page_of, shown))
          known.append({'pages': found, 'provenance': record['provenance']})
        entry = {
          'answer': kilt.published_answer(record['prediction'].strip(), record_format),
          'provenance': list(_provenance(shown, where, pages, with_text)),
        }
        row = {'id': record['id'], 'output': [entry]}
        file.write(json.dumps(row, ensure_ascii=False) + '\n')
    if not seen:
      raise ValueError(f'{path}: holds no predictions')
  for note in summary.notes({'count': len(seen), 'noted': summary.unknown_pages(known)}):
    logging.warning('%s: %s.', path, note)
  return len(seen)


def _check(record: Mapping[str, Any], where: str) -> None:
  for name in ('id', 'prediction'):
    if not isinstance(record.get(name), str):
      raise ValueError(
        f'{where}: field {name!r} must be a string, found '
        f'{json_records.kind(record.get(name))}; is this a predictions.jsonl?'
      )
  passages = record.get('passages')
  if not isinstance(passages, list | None):
    raise ValueError(
      f"{where}: field 'passages' must be a list of objects, found {json_records.kind(passages)}"
    )
  for number, passage in enumerate(passages or []):
    _check_passage(passage, f"{where}: field 'passages[{number}]")


def _check_passage(passage: Any, where: str) -> None:
  """Checks the fields that are used; `where` ends within a quoted name."""
  if not isinstance(passage, dict):
    raise ValueError(f"{where}' must be an object, found {json_records.kind(passage)}")
  for name in ('id', 'document', 'title', 'text'):
    value = passage.get(name)
    # bool is an int in Python, but true is no id.
    known = str | None if name in ('title', 'text') else str | int | None
    if isinstance(value, bool) or not isinstance(value, known):
      raise ValueError(f"{where}.{name}' must be a string, found {json_records.kind(value)}")


def _provenance(
  passages: Sequence[Mapping[str, Any]], where: str, pages: PageOptions, with_text: bool
) -> Iterator[dict[str, str]]:
  shown: set[str] = set()
  for passage in passages:
    page = pages.page_of(passage)
    if not page or (page in shown and not with_text):
      continue
    shown.add(page)
    yield {
      'wikipedia_id': page,
      **({'title': passage['title']} if passage.get('title') else {}),
      **({'text': passage.get('text') or ''} if with_text else {}),
    }
  if passages and not shown:
    raise ValueError(
      f'{where}: none of the {len(passages)} passages names a page in '
      f'{pages.page_field!r}; choose another page field'
    )
