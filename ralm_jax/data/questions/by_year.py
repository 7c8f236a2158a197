"""Questions whose answers changed between years."""

from collections.abc import Iterable, Sequence
import logging

from ralm_jax.data.questions.reading import Question


def disjoint_years(
  questions: Iterable[Question], years: Sequence[int | str] = (2017, 2020)
) -> dict[str, list[Question]]:
  """Questions whose answers changed between years, as Atlas's on TempLAMA.

  Of the questions of the same text those of the first of the years are taken, and those of later
  ones that share no answer with it. A text without such a later year is left out. Answers are
  compared as written. Where two questions of one year have the same text (two people of the same
  name), the answers of both count, so that it is certain that the later answer is another.

  Questions have the year as their `group`; the result is by year, as texts first occur.

  Raises:
    ValueError: fewer than two years, or one twice; no question is of one of the years.
  """
  names = [str(year) for year in years]
  if len(set(names)) < 2 or len(set(names)) < len(names):
    raise ValueError(f'years is {years!r}; give two or more, each once')
  by_text: dict[str, dict[str, list[Question]]] = {}
  for question in questions:
    if question.group in names:
      by_year = by_text.setdefault(question.question, {})
      by_year.setdefault(question.group, []).append(question)
  chosen: dict[str, list[Question]] = {name: [] for name in names}
  for year in names:
    if not any(year in by_year for by_year in by_text.values()):
      raise ValueError(
        f'no question is of the year {year}; read the files with a '
        "record_format of dated questions ('templama', 'dated')"
      )
  kept = 0
  for by_year in by_text.values():
    first, *later = [name for name in names if name in by_year]
    known = _answers(by_year[first])
    changed = [year for year in later if not known & _answers(by_year[year])]
    kept += bool(changed)
    for year in [first, *changed] if changed else []:
      chosen[year].extend(by_year[year])
  left_out = len(by_text) - kept
  logging.info('left out %d of %d texts, whose answers did not change', left_out, len(by_text))
  return chosen


def _answers(questions: Iterable[Question]) -> set[str]:
  return {answer for question in questions for answer in question.answers}
