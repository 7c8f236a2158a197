"""A corpus with questions from the standard library's own documentation.

The docstring's first sentence is a question whose answer is the qualified name; see
`preparation/standard_library.py` for the documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
import re

from ralm_jax.evaluation import metrics
from ralm_jax.preparation import standard_library

_ABBREVIATIONS = ('e.g.', 'i.e.', 'etc.', 'vs.', 'cf.', 'approx.', 'incl.')


@dataclass(frozen=True)
class Docstring:
  """One documented object."""

  # Qualified name, such as `asyncio.events.Handle.cancel`; the passage's title and the question's
  # answer.
  name: str
  sentence: str  # First sentence of the documentation; the question.
  # The documentation, first sentence included, without its signature line, on one line and cut
  # after `max_words` words; the passage.
  text: str


def first_sentence(text: str) -> str:
  """Returns the first sentence of `text`, on one line, or the first paragraph."""
  paragraph = ' '.join(re.split(r'\n\s*\n', text, maxsplit=1)[0].split())
  for match in re.finditer(r'[.!?](?=\s|$)', paragraph):
    sentence = paragraph[: match.end()]
    if not sentence.lower().endswith(_ABBREVIATIONS):
      return sentence
  return paragraph


def collect_docstrings(
  min_words: int = 4, max_words: int = 100, max_sentence_words: int = 30
) -> list[Docstring]:
  """Returns the documentation of this Python's standard library in the order of names.

  Names that begin with an underscore are left out. Where several objects share a first sentence,
  which could not be told apart by it, only the one with the shortest name stays, so every question
  has one answer. First sentences that give the qualified name away are left out. About 5,000 stay.

  Raises FileNotFoundError where this Python has no standard library sources on disk.
  """
  found: dict[str, str] = {}
  for name, docstring in standard_library.docstrings():
    found.setdefault(name, docstring)
  kept: dict[str, Docstring] = {}
  for name in sorted(found, key=lambda name: (len(name), name)):
    text = standard_library.clean_docstring(found[name])
    sentence = first_sentence(text)
    words = len(re.findall(r'[A-Za-z]+', sentence))
    if not min_words <= words <= max_sentence_words or name in sentence:
      continue
    text = ' '.join(text.split()[:max_words])
    kept.setdefault(metrics.normalize_answer(sentence), Docstring(name, sentence, text))
  return sorted(kept.values(), key=lambda docstring: docstring.name)
