"""Articles in the layouts of WikiText and Wiki-40B, as passages.

WikiText (Merity et al. 2017): a line ` = Title = ` begins an article, ` = = Section = = ` a
section, with more signs for what is inside it; every other line is a paragraph, tokenised. Wiki-40B
(Guo et al. 2020): one text an article, with `_START_ARTICLE_` and its like on lines of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
import os
import pathlib
import re

from ralm_jax.files import json_records

_HEADING = re.compile(r'((?:= )+)(.+?)((?: =)+)')
# WikiText writes `5 @,@ 000` and `one @-@ time`.
_JOINED = re.compile(r' @([-,.])@ ')
_MARKERS = {'_START_ARTICLE_': 'title', '_START_SECTION_': 'section', '_START_PARAGRAPH_': 'text'}


def read_articles(path: str | pathlib.Path, *, join: bool = True) -> Iterator[dict[str, str]]:
  """The sections of a WikiText file, one passage each.

  Headings inside a section are joined to it, `Section: Part`; before the first there is no section.
  Long sections stay whole: `ralm corpus --max_words` cuts them.

  Yields:
    `id` (file, article and section, counted from 0), `title`, `section`,
    `text`, whose paragraphs are lines, and `document` (file and article).

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not UTF-8, or its first line of text is no title; with file and line.
  """
  path = pathlib.Path(path)
  stem = path.name.partition('.')[0]
  article, title, count = -1, '', 0
  headings: list[str] = []
  paragraphs: list[str] = []

  def passage() -> Iterator[dict[str, str]]:
    nonlocal count
    if paragraphs:
      yield {
        'id': f'{stem}-{article}-{count}',
        'title': title,
        'section': ': '.join(headings),
        'text': '\n'.join(paragraphs),
        # Titles that are rare words are all `<unk>`.
        'document': f'{stem}-{article}',
      }
      count += 1
      paragraphs.clear()

  for number, line in json_records.read_lines(os.fspath(path)):
    text = _JOINED.sub(r'\1', line.strip()) if join else line.strip()
    if not text:
      continue
    depth, heading = _heading(text)
    if depth:
      yield from passage()
    if depth == 1:
      article, title, count, headings = article + 1, heading, 0, []
    elif article < 0:
      raise ValueError(
        f"{path}:{number}: expected a title, ' = Title = ', found {text:.60}; "
        'is this a file of WikiText?'
      )
    elif depth:
      headings = [*headings[: depth - 2], heading]
    else:
      paragraphs.append(text)
  yield from passage()


def wiki40b_sections(text: str) -> list[dict[str, str]]:
  """`title`, `section` and `text` of each section of an article of Wiki-40B that has text."""
  current = {'title': '', 'section': ''}
  sections: list[dict[str, str]] = []
  kind = 'text'
  for line in text.replace('_NEWLINE_', '\n').split('\n'):
    line = line.strip()
    if line in _MARKERS:
      kind = _MARKERS[line]
    elif line and kind == 'text':
      if sections and sections[-1].items() >= current.items():
        sections[-1]['text'] += '\n' + line
      else:
        sections.append({**current, 'text': line})
    elif line:
      current[kind] = line
      if kind == 'title':
        current['section'] = ''
  return sections


def _heading(text: str) -> tuple[int, str]:
  """Depth of a heading and its words; 0 and '' for a paragraph."""
  match = _HEADING.fullmatch(text)
  if not match:
    return 0, ''
  before, heading, after = match.groups()
  if before.count('=') != after.count('='):
    return 0, ''
  return before.count('='), heading
