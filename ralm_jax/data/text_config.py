"""TextConfig: how questions, passages and answers become tokens."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import re
from typing import Any, Literal

from ralm_jax.data.text import templates
from ralm_jax.losses import option_types
from ralm_jax.losses.option_types import Count


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Formats and lengths; a checkpoint carries them."""

  #: what the reader reads from `{question}`, and the retriever unless it has a `query_format`
  question_format: str = 'question: {question} answer: <extra_id_0>'
  target_format: str = '<extra_id_0> {answer}'  #: the target from `{answer}`
  #: one passage for the reader, from `{query}`, `{title}` and `{text}`; `{query}` alone is closed-
  #: book. RAG's is `templates.RAG_READER_FORMAT`.
  reader_format: str = templates.READER_FORMAT
  #: one passage for the retriever, from `{title}`, `{text}`; DPR's is
  #: `templates.DPR_RETRIEVER_FORMAT`.
  retriever_format: str = templates.RETRIEVER_FORMAT
  #: the retriever's query from `{question}`; None: as question_format, which is Atlas's way
  query_format: str | None = None
  query_prompt: str = ''  #: what the retriever's queries begin with, such as E5's 'query: '
  query_length: Count = 64  #: retriever tokens of a query, special tokens included
  reader_query_length: Count = 64  #: reader tokens of a query
  passage_length: Count = 200  #: reader tokens of query and passage together
  retriever_passage_length: Count = 200  #: retriever tokens of a passage
  target_length: Count = 32  #: reader tokens of a target, the end of sequence included
  n_passages: Count = 20  #: passages retrieved for a question
  #: reader tokens of a multiple-choice prompt, of which longer questions keep their end (Atlas)
  choice_prompt_length: Count = 356
  # Of decoder-only readers alone (`text/prompts.py`), whose prompts are demonstrations, passages
  # (`passage_length` is then that of one by itself) and the question in `question_format`.
  #: one passage from `{title}` and `{text}`, in place of `reader_format`; ends its line. Without a
  #: title, what stands between it and the text goes, too.
  passage_format: str = 'Context: {title}. {text}\n'
  prompt_style: Literal['plain', 'chat'] = 'plain'  #: chat: by the reader's own chat template
  system_prompt: str = ''  #: an instruction that prompts begin with
  demonstration_separator: str = '\n'  #: behind each demonstration of the plain style
  stop_strings: tuple[str, ...] = ('\n',)  #: end answers, as the end of sequence does
  #: reader tokens of a whole prompt, for which passages are cut, then left out, worst first; None:
  #: the reader's positions less `target_length`
  prompt_length: Count | None = None

  def __post_init__(self):
    stops = self.stop_strings
    # JSON and gin have lists.
    object.__setattr__(self, 'stop_strings', (stops,) if isinstance(stops, str) else tuple(stops))
    option_types.check_fields(self)
    if '' in self.stop_strings:
      raise ValueError("TextConfig.stop_strings holds '', at which every answer would end.")
    if '{text}' not in self.passage_format or not self.passage_format.endswith('\n'):
      raise ValueError(
        f'TextConfig.passage_format {self.passage_format!r} must contain {{text}} and end with a '
        'newline, behind which the next segment of a prompt is tokenised.'
      )
    for name, format, field in (
      ('question_format', self.question_format, '{question}'),
      ('query_format', self.query_format, '{question}'),
      ('target_format', self.target_format, '{answer}'),
    ):
      if format is not None and field not in format:
        raise ValueError(f'TextConfig.{name} {format!r} must contain {field}.')
    if self.query_prompt and not self.query_prompt[-1].isspace():
      raise ValueError(
        f'TextConfig.query_prompt {self.query_prompt!r} must end with a space, since '
        'queries are tokenised apart from it.'
      )

  @property
  def closed_book(self) -> bool:
    return self.reader_format.strip() == templates.CLOSED_BOOK_FORMAT

  def query(self, question: str) -> str:
    """What the reader reads of a question."""
    return self.question_format.replace('{question}', question)

  @property
  def retriever_question_format(self) -> str:
    return self.query_format or self.question_format

  def retriever_query(self, question: str) -> str:
    """What the retriever is asked, without `query_prompt`."""
    return self.retriever_question_format.replace('{question}', question)

  def refuse_sentinels(self, vocabulary: object, remedy: str) -> None:
    """Raises ValueError where what is read or written has a sentinel of T5."""
    for field in ('question_format', 'target_format'):
      format = getattr(self, field)
      if '<extra_id_' in format:
        raise ValueError(
          f'TextConfig.{field} {format!r} has a sentinel of T5, which the reader vocabulary '
          f'{vocabulary} does not know; {remedy}.'
        )

  def target(self, answer: str) -> str:
    return self.target_format.replace('{answer}', answer)


def parse_fields(arguments: Sequence[str]) -> dict[str, Any]:
  """`FIELD=VALUE`s to fields of TextConfig; ValueError for no such field or no number.

  A value's \\n is a newline. Several texts are a JSON list.
  """
  types = {f.name: f.type for f in dataclasses.fields(TextConfig)}
  fields: dict[str, Any] = {}
  for argument in arguments:
    name, equals, value = argument.partition('=')
    if not equals or name not in types:
      raise ValueError(
        f'--text {argument}: expected FIELD=VALUE, the field one of {", ".join(types)}.'
      )
    try:
      fields[name] = _parsed(value, str(types[name]))
    except ValueError:
      expected = 'no number' if 'Count' in str(types[name]) else 'neither a text nor a JSON list'
      raise ValueError(f'--text {argument}: {value!r} is {expected}.') from None
  return fields


def _parsed(value: str, type_name: str) -> Any:
  if type_name.startswith('Count'):
    return None if value == 'None' and 'None' in type_name else int(value)
  if type_name.startswith('tuple') and value[:1] == '[':
    return tuple(json.loads(value))
  text = re.sub(r'\\[nt]', lambda match: {'n': '\n', 't': '\t'}[match[0][1]], value)
  return ((text,) if text else ()) if type_name.startswith('tuple') else text
