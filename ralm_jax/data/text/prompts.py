"""Prompts of decoder-only readers: head, passages, question and answer as token segments.

A prompt is its segments one behind the other: the head (start of sequence, system prompt,
demonstrations), the passages, the tail (the question, up to where the answer begins) and the
answer. Segments meet behind a newline or at a special token, where tokenizers split text anyhow, so
that their ids are those of the whole prompt; they are tokenised apart, since passages change with
the index and their order with the reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import re

from ralm_jax.data.text import words
from ralm_jax.data.text.decoder_vocabulary import DecoderVocabulary
from ralm_jax.data.text_config import TextConfig

_MARKERS = 'Q7mark{}Q7'  # What no template writes, and none changes.


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """A question that is shown with its answer; passages as (title, text), in the order read."""

  question: str
  answer: str
  passages: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class PromptFormat:
  """Makes the segments of one vocabulary, by a TextConfig.

  Raises:
    ValueError: a format that is of T5, a stop string without text, or a chat style without a
      template that can be rendered.
  """

  text: TextConfig
  vocabulary: DecoderVocabulary

  def __post_init__(self):
    self.text.refuse_sentinels(
      self.vocabulary.path,
      "for decoder-only readers use question_format = 'Question: {question}\\nAnswer:' and "
      "target_format = ' {answer}'",
    )
    if self._chats:
      self._turns(0)

  @property
  def _chats(self) -> bool:
    return self.text.prompt_style == 'chat'

  def head(self, demonstrations: Sequence[Demonstration] = ()) -> list[int]:
    """What all passages stand behind."""
    encode, text = self.vocabulary.encode_segment, self.text
    if self._chats:
      turns = self._turns(len(demonstrations))
      ids = list(turns[0])
      for i, one in enumerate(demonstrations):
        asked = [*self._passages(one), *encode(self._question(one.question))]
        ids += [*asked, *turns[2 * i + 1], *encode(self._target(one.answer)), *turns[2 * i + 2]]
      return ids
    ids = [] if self.vocabulary.bos_id is None else [self.vocabulary.bos_id]
    if text.system_prompt:
      ids += encode(f'{text.system_prompt}\n')
    for one in demonstrations:
      shown = self._question(one.question) + self._target(one.answer) + text.demonstration_separator
      ids += [*self._passages(one), *encode(shown)]
    return ids

  def _passages(self, one: Demonstration) -> list[int]:
    return [token for ids in self.passages(one.passages) for token in ids]

  def passages(self, passages: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Titles and texts as segments of at most `passage_length` tokens."""
    shown = [''.join(self._passage_parts(*one)) for one in passages]
    whole = self.vocabulary.encode_segment_batch(shown)
    return [self.cut_passage(ids, self.text.passage_length) for ids in whole]

  def cut_passage(self, ids: Sequence[int], length: int) -> list[int]:
    """The first tokens of a passage, then what ends its line."""
    if len(ids) <= length:
      return list(ids)
    end = self._passage_end
    return [*ids[: length - len(end)], *end] if len(end) < length else []

  @functools.cached_property
  def _passage_end(self) -> list[int]:
    return self.vocabulary.encode_segment(_trailing_space(self.text.passage_format))

  def _passage_parts(self, title: str, text: str) -> list[str]:
    """The format's literals and fields, one after the other; fields stand at odd places.

    Without a title, what is between it and the next field goes, too.
    """
    pieces = re.split(r'\{(title|text)\}', self.text.passage_format)
    shown = {'title': self._shown_title(title), 'text': self._shown_text(text)}
    for i in range(1, len(pieces), 2):
      if pieces[i] == 'title' and not shown['title']:
        pieces[i + 1] = pieces[i + 1] if i + 2 == len(pieces) else ''
      pieces[i] = shown[pieces[i]]
    return pieces

  def _shown_title(self, title: str) -> str:
    return ' '.join(title.split())

  def _shown_text(self, text: str) -> str:
    """One line; a chat keeps the lines of a text."""
    return text.strip() if self._chats else ' '.join(text.split())

  def characters_read(self, title: str, text: str, length: int) -> dict[str, int | None]:
    """Characters of `title` and `text` in a passage of `length` tokens at most; None for all.

    A word cut in two does not count.
    """
    parts = self._passage_parts(title, text)
    read = ''.join(parts)
    ids = self.vocabulary.encode_segment(read)
    if len(ids) > length:
      kept = self.vocabulary.decode(ids[: max(0, length - len(self._passage_end))])
      read = read[: _common_length(read, kept)]
    found: dict[str, int | None] = {'title': 0, 'text': 0}
    names = re.findall(r'\{(title|text)\}', self.text.passage_format)
    for i, name in enumerate(names):
      start = len(''.join(parts[: 2 * i + 1]))
      content = {'title': title, 'text': text}[name]
      found[name] = _position(
        content, len(read[start:]), spaced=parts[2 * i + 1] != content.strip()
      )
    return found

  def query(self, text: str, length: int | None = None) -> list[int]:
    """A question in its format, cut at its end, with what stands behind it in a chat."""
    length = self.text.reader_query_length if length is None else length
    return self._cut(text, '', length)

  def question(self, question: str) -> list[int]:
    """The tail: the question in its format, of which the question alone is cut."""
    after = self.text.question_format.rpartition('{question}')[2]
    after = after.rstrip() if self._chats else after
    before = self._question(question).removesuffix(after)
    return self._cut(before, after, self.text.reader_query_length)

  def _cut(self, before: str, after: str, length: int) -> list[int]:
    encode = self.vocabulary.encode_segment
    whole = encode(before + after) + self._after_question
    if len(whole) <= length:
      return whole
    end = (encode(after) if after else []) + self._after_question
    return [*encode(before)[: max(0, length - len(end))], *end][:length]

  @property
  def _after_question(self) -> list[int]:
    return self._turns(0)[-1] if self._chats else []

  def question_lengths(self, questions: Sequence[str]) -> list[int]:
    """Tokens of whole tails."""
    whole = self.vocabulary.encode_segment_batch(list(map(self._question, questions)))
    return [len(ids) + len(self._after_question) for ids in whole]

  def _question(self, question: str) -> str:
    shown = self.text.query(question.strip())
    return shown.strip() if self._chats else shown

  def _target(self, answer: str) -> str:
    shown = self.text.target(' '.join(answer.split()))
    return shown.strip() if self._chats else shown

  def target(self, answer: str) -> list[int]:
    """An answer as it stands behind the tail, ended by `end_id` unless it is cut."""
    return self.framed_target(self.vocabulary.encode_segment(self._target(answer)))

  def prefix(self, text: str) -> list[int]:
    """What an answer begins with, behind the space that stands before one."""
    before = self.text.target_format.partition('{answer}')[0]
    return self.vocabulary.encode_segment(text if self._chats else before + text)

  def framed_target(self, ids: Sequence[int]) -> list[int]:
    return [*ids, self.end_id][: self.text.target_length]

  def target_lengths(self, answers: Sequence[str]) -> list[int]:
    whole = self.vocabulary.encode_segment_batch(list(map(self._target, answers)))
    return [len(ids) + 1 for ids in whole]

  @functools.cached_property
  def end_id(self) -> int:
    """What ends an answer: in a chat the turn's end, else the stop string where it is one token."""
    stops = () if self._chats else self.text.stop_strings
    ends = map(self.vocabulary.encode_segment, stops)
    return next((ids[0] for ids in ends if len(ids) == 1), self.vocabulary.eos_id)

  @functools.cached_property
  def stop_ids(self) -> tuple[int, ...]:
    """All ids but that of the end of sequence at which an answer ends."""
    ids = {self.end_id, *self.vocabulary.end_ids}
    for stop in self.text.stop_strings:
      ids.update(self.vocabulary.stop_ids(stop))
    return tuple(sorted(ids - {self.vocabulary.eos_id}))

  @functools.cached_property
  def has_long_stops(self) -> bool:
    """Whether a stop string may be of several tokens."""
    return any(len(self.vocabulary.encode_segment(stop)) > 1 for stop in self.text.stop_strings)

  def ends(self, tokens: Sequence[int]) -> bool:
    """Whether what was decoded ended, by a token or a stop string, and was not cut."""
    return self._kept(tokens) < len(tokens) or self.stops_within(tokens)

  def answer(self, tokens: Sequence[int]) -> str:
    """The text up to the first end of sequence or stop string."""
    text = self._decode(tokens)
    return text[: self._stop_in(text)].strip()

  def shown(self, tokens: Sequence[int]) -> list[int]:
    """What was decoded up to what ends the answer, as a target has it."""
    ids = list(map(int, tokens[: self._kept(tokens)]))
    if self.stops_within(ids):
      ends = lambda n: self._stop_in(self._decode(ids[:n])) is not None
      return ids[: next(n for n in range(1, len(ids) + 1) if ends(n))]
    return [*ids, self.end_id] if len(ids) < len(tokens) else ids

  def stops_within(self, tokens: Sequence[int]) -> bool:
    """Whether a stop string of several tokens ends the answer, behind which more was decoded."""
    return self._stop_in(self._decode(tokens)) is not None

  def _decode(self, tokens: Sequence[int]) -> str:
    return self.vocabulary.decode(list(map(int, tokens[: self._kept(tokens)])))

  def _kept(self, tokens: Sequence[int]) -> int:
    ends = {self.end_id, *self.vocabulary.end_ids}
    return next((i for i, token in enumerate(tokens) if int(token) in ends), len(tokens))

  def _stop_in(self, text: str) -> int | None:
    """Where the first stop string begins; None without any."""
    found = map(text.find, self.text.stop_strings)
    return min((at for at in found if at >= 0), default=None)

  @functools.cached_property
  def _turns(self) -> Callable[[int], list[list[int]]]:
    return functools.lru_cache(self._tokenised_turns)

  def _tokenised_turns(self, n: int) -> list[list[int]]:
    """Ids of what a chat template writes around n questions and answers, and a last question."""
    roles = [*('user', 'assistant') * n, 'user']
    markers = [_MARKERS.format(i) for i in range(len(roles))]
    messages = [{'role': role, 'content': one} for role, one in zip(roles, markers)]
    if self.text.system_prompt:
      messages.insert(0, {'role': 'system', 'content': self.text.system_prompt})
    vocabulary = self.vocabulary
    rendered = vocabulary.chat(messages, add_generation_prompt=True)
    pieces = re.split('|'.join(markers), rendered)
    if re.findall('|'.join(markers), rendered) != markers:
      raise ValueError(
        f'{vocabulary.path}: its chat template does not show every message once and in order; use '
        'the plain prompt style (--text prompt_style=plain).'
      )
    return [vocabulary.encode_segment(piece, special=True) if piece else [] for piece in pieces]


def _trailing_space(format: str) -> str:
  return format[len(format.rstrip()) :]


def _common_length(text: str, other: str) -> int:
  """Characters that both begin with."""
  return next(
    (i for i, (a, b) in enumerate(zip(text, other)) if a != b), min(len(text), len(other))
  )


def _position(text: str, n: int, spaced: bool) -> int | None:
  """Characters of a text whose words are among the first n of what is shown of it; None for all.

  Shown is the text without space around it, and if `spaced` with one space between words.
  """
  if not spaced:
    n += len(text) - len(text.lstrip())
  end = room = 0
  for first, last in words.spans(text):
    room += last - first + (spaced and 0 < end < first) if spaced else last - end
    if room > n:
      return end
    end = last
  return None
