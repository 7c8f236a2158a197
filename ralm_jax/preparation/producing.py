"""Writes the splits of a benchmark, and few-shot files beside them."""

from __future__ import annotations

from collections.abc import Iterable
import os

from ralm_jax.data.questions import few_shot
from ralm_jax.data.questions.reading import Question
from ralm_jax.preparation import writing
from ralm_jax.preparation.protocols import Split
from ralm_jax.preparation.writing import Written

# Questions to keep at once while the shots are chosen.
_CHUNK = 50_000


def write(
  folder: str,
  splits: Iterable[Split],
  shots: int | None,
  shots_seed: int,
  shots_list: str | None,
  progress: bool,
) -> list[Written]:
  """Writes splits, and a few-shot file beside each training split."""
  written = []
  for split in splits:
    if split.passages is not None:
      written.append(
        writing.write_rows(folder, split.name, split.passages, how=split.how, progress=progress)
      )
      continue
    is_train = split.name.rpartition('/')[2] == 'train'
    few = _Shots(shots, shots_seed, shots_list) if is_train else _Shots()
    written.append(
      writing.write_rows(
        folder,
        split.name,
        map(writing.row, few.watching(split.questions or ())),
        how=split.how,
        progress=progress,
      )
    )
    chosen, how = few.chosen(split.original)
    if chosen:
      written.append(
        writing.write_rows(
          folder,
          f'{split.name}.{len(chosen)}-shot',
          map(writing.row, chosen),
          how=how,
          progress=False,
        )
      )
  return written


class _Shots:
  """Chooses shots of questions that pass by, few of them in memory at once."""

  def __init__(self, shots: int | None = None, seed: int = 0, listed: str | None = None):
    self._shots, self._seed, self._list = shots, seed, listed
    self._kept: list[Question] = []

  def watching(self, questions: Iterable[Question]) -> Iterable[Question]:
    for question in questions:
      if self._shots or self._list:
        self._kept.append(question)
      # The smallest hashes of all are among the smallest of every part.
      if self._shots and len(self._kept) >= self._shots + _CHUNK:
        self._kept = few_shot.choose(self._kept, self._shots, self._seed)
      yield question

  def chosen(self, original: list[Question] | None) -> tuple[list[Question], str]:
    """The shots and how they were chosen.

    A list is of places in the published file, which `original` holds.
    """
    if self._list:
      name = os.path.basename(self._list)
      return few_shot.listed(original or self._kept, self._list), f'list {name}'
    if self._shots is not None:
      return (few_shot.choose(self._kept, self._shots, self._seed), f'by hash, seed {self._seed}')
    return [], ''
