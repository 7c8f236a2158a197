"""Docstrings as files: passages, and questions that share no answer across splits."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from dataclasses import dataclass
import hashlib
import json
import os
from pathlib import Path

from ralm_jax.evaluation import metrics
from ralm_jax.files import atomic_files
from ralm_jax.quickstart.docstrings import Docstring


@dataclass(frozen=True)
class Split:
  """Training and test questions that share no answer."""

  train: list[Docstring]
  test: list[Docstring]


def split_by_object(
  docstrings: Iterable[Docstring], test_fraction: float = 0.1, seed: int = 0
) -> Split:
  """Splits so that no object, under whatever name, is on both sides.

  Names that exact match could not tell apart, and names that share their whole documentation (an
  alias, or one object exported twice), stay together. A group's side depends only on its
  alphabetically first name and `seed`, never on the other groups.

  Raises ValueError where `test_fraction`, the expected share of objects for the test side, is not
  between 0 and 1.
  """
  if not 0 < test_fraction < 1:
    raise ValueError(f'test_fraction must lie between 0 and 1, got {test_fraction}')
  docstrings = list(docstrings)
  group = _Groups()
  for docstring in docstrings:
    group.join(
      'name ' + docstring.name,
      'answer ' + metrics.normalize_answer(docstring.name),
      'text ' + metrics.normalize_answer(docstring.text),
    )
  first_name: dict[str, str] = {}
  for docstring in docstrings:
    root = group.find('name ' + docstring.name)
    first_name[root] = min(first_name.get(root, docstring.name), docstring.name)
  split = Split([], [])
  for docstring in docstrings:
    name = first_name[group.find('name ' + docstring.name)]
    digest = hashlib.sha256(f'{seed} {name}'.encode()).digest()
    is_test = int.from_bytes(digest[:8], 'big') < test_fraction * 2**64
    (split.test if is_test else split.train).append(docstring)
  return split


def write_corpus(
  directory: str | os.PathLike,
  docstrings: Iterable[Docstring],
  test_fraction: float = 0.1,
  seed: int = 0,
) -> Split:
  """Writes `passages.jsonl`, `train.jsonl` and `test.jsonl`.

  Passages of both sides are in the corpus; only the questions are split. A
  passage's id is its name.

  Raises:
    ValueError: A name occurs twice, or a side of the split is empty.
  """
  docstrings = list(docstrings)
  for name, count in collections.Counter(d.name for d in docstrings).items():
    if count > 1:
      raise ValueError(f'{name!r} occurs twice; ids must be unique')
  split = split_by_object(docstrings, test_fraction, seed)
  if not split.train or not split.test:
    raise ValueError(
      f'{len(docstrings)} docstrings make {len(split.train)} training and '
      f'{len(split.test)} test questions; both need at least one'
    )
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  _write_lines(
    directory / 'passages.jsonl',
    ({'id': d.name, 'title': d.name, 'section': '', 'text': d.text} for d in docstrings),
  )
  for file_name, side in (('train.jsonl', split.train), ('test.jsonl', split.test)):
    questions = (
      {'id': d.name, 'question': d.sentence, 'answers': [d.name], 'gold_passage_id': d.name}
      for d in side
    )
    _write_lines(directory / file_name, questions)
  return split


class _Groups:
  """Union-find over strings."""

  def __init__(self):
    self._parent: dict[str, str] = {}

  def find(self, key: str) -> str:
    self._parent.setdefault(key, key)
    while self._parent[key] != key:
      self._parent[key] = self._parent[self._parent[key]]
      key = self._parent[key]
    return key

  def join(self, first: str, *others: str) -> None:
    for other in others:
      self._parent[self.find(other)] = self.find(first)


def _write_lines(path: Path, records: Iterable[dict]) -> None:
  with atomic_files.replacing(path) as aside, open(aside, 'w', encoding='utf-8') as file:
    for record in records:
      file.write(json.dumps(record, ensure_ascii=False) + '\n')
