"""Writes the splits of a benchmark, and few-shot files beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import dataclasses
import os

from ralm_jax.data.questions import few_shot
from ralm_jax.data.questions.reading import Question
from ralm_jax.preparation import writing
from ralm_jax.preparation.protocols import Split
from ralm_jax.preparation.writing import Written

# Questions to keep at once while the shots are chosen.
_CHUNK = 50_000


@dataclasses.dataclass(frozen=True)
class Shots:
  """Which training questions become a few-shot file; false where none do."""

  count: int | None = None
  seed: int = 0
  listed: str | None = None  # File of their places or ids, in place of a choice.

  def __post_init__(self):
    if self.count is not None and self.listed:
      raise ValueError('give shots or shots_list, not both')

  def __bool__(self) -> bool:
    return self.count is not None or bool(self.listed)


def write(folder: str, splits: Iterable[Split], shots: Shots, progress: bool) -> list[Written]:
  """Writes splits, and a few-shot file beside each training split."""
  written = []
  for split in splits:
    is_train = split.name.rpartition('/')[2] == 'train'
    few = _Chooser(shots if is_train else Shots())
    rows = split.passages
    if rows is None:
      rows = map(writing.row, few.watching(split.questions or ()))
    written.append(writing.write_rows(folder, split.name, rows, how=split.how, progress=progress))
    if split.passages is None:
      chosen, how = few.chosen(split.original)
      if chosen:
        name, rows = f'{split.name}.{len(chosen)}-shot', map(writing.row, chosen)
        written.append(writing.write_rows(folder, name, rows, how=how, progress=False))
  return written


class _Chooser:
  """Chooses shots of questions that pass by, few of them in memory at once."""

  def __init__(self, shots: Shots):
    self._shots = shots
    self._kept: list[Question] = []

  def watching(self, questions: Iterable[Question]) -> Iterator[Question]:
    count, seed = self._shots.count, self._shots.seed
    for question in questions:
      if count or self._shots.listed:
        self._kept.append(question)
      # The smallest hashes of all are among the smallest of every part.
      if count and len(self._kept) >= count + _CHUNK:
        self._kept = few_shot.choose(self._kept, count, seed)
      yield question

  def chosen(self, original: list[Question] | None) -> tuple[list[Question], str]:
    """The shots and how they were chosen.

    A list is of places in the published file, which `original` holds.
    """
    count, seed, listed = dataclasses.astuple(self._shots)
    if listed:
      name = os.path.basename(listed)
      return few_shot.listed(original or self._kept, listed), f'list {name}'
    if count is not None:
      return few_shot.choose(self._kept, count, seed), f'by hash, seed {seed}'
    return [], ''
