"""From a QueryBatch and retrieved rows to the prompts of a decoder-only reader."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.batches import QueryBatch
from ralm_jax.data.corpus.passage_store import Passage, PassageStore
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text.prompts import PromptFormat
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.losses.array_types import Int
from ralm_jax.retrieval.assembler import Assembler

# A passage of which no more would be read is left out.
_LEAST_TOKENS = 16
# Lengths are multiples of these, so that few shapes are compiled where batches differ.
_HEAD_STEP = 16
_PASSAGE_STEP = 64
_PROMPT_STEP = 128


@dataclasses.dataclass(frozen=True)
class PromptLayout:
  """What a prompt must fit into."""

  positions: int  #: of the reader
  together: bool  #: all passages in one prompt; else one prompt each, or at the same positions
  n_read: int | None = None  #: passages of a prompt; None for all
  #: Whether batches are as long as their own prompts; else all are of one length, as training and
  #: several processes need them.
  compact: bool = False
  kept: int | None = None  #: passages that re-ranking leaves of more; None where nothing re-ranks


def assembler_of(
  spec: Specification, store: PassageStore | None, *, compact: bool = False, kept: int | None = None
) -> Assembler:
  """Builds batches for a model; no store is closed-book. ValueError as `Assembler`.

  See `PromptLayout` for `compact` and `kept`.
  """
  if spec.tokenizer.prompts is None:
    return Assembler(spec.tokenizer, store)
  config: Any = spec.model.reader_config
  together = spec.model.reading_object.reads_together
  n_read = spec.model.n_context
  layout = PromptLayout(config.max_positions, together, n_read, compact, kept)
  return PromptAssembler(spec.tokenizer, store, layout)


class PromptAssembler(Assembler):
  """Passages become segments of prompts, in retrieval order; the reading orders them."""

  def __init__(self, tokenizer: QueryTokenizer, store: PassageStore | None, layout: PromptLayout):
    self._layout = layout
    super().__init__(tokenizer, store)

  def _prepare_reader(self) -> None:
    text = self.tokenizer.text
    self._space = text.prompt_length or self._layout.positions - text.target_length
    self._bare_head = self._prompts.head()

  @property
  def _prompts(self) -> PromptFormat:
    prompts = self.tokenizer.prompts
    if prompts is None:
      raise ValueError(f'{self.tokenizer.reader_vocabulary.path} is not of a decoder-only reader.')
    return prompts

  def _reader_arrays(
    self,
    queries: QueryBatch,
    rows: np.ndarray,
    titles: RaggedTokens | None,
    heads: Sequence[Sequence[int]] | None,
  ) -> dict[str, Any]:
    count, vocabulary = len(rows), self.tokenizer.reader_vocabulary
    heads = list(heads or [self._bare_head])
    tails = RaggedTokens.from_padded(queries.reader_query_tokens, vocabulary.pad_id)
    segments = self._segments(rows, titles)
    shown = self._shown(segments.lengths.reshape(rows.shape), heads, tails.lengths)
    cut = [
      self._prompts.cut_passage(segment, length)
      for segment, length in zip(segments.to_lists(), shown.ravel().tolist())
    ]
    head = RaggedTokens.from_lists(heads if len(heads) > 1 else heads * count)
    reader = RaggedTokens.from_lists(cut)
    lengths, prompt_length = self._lengths(head, reader.lengths.reshape(rows.shape), tails)
    arrays: dict[str, Any] = {'head_is_shared': len(heads) == 1, 'prompt_length': prompt_length}
    for (name, length), tokens in zip(lengths.items(), (head, tails, reader)):
      arrays[f'{name}_tokens'] = tokens.pad(length, vocabulary.pad_id)
      arrays[f'{name}_mask'] = np.arange(length) < tokens.lengths[:, None]
    for name in ('reader_tokens', 'reader_mask'):
      arrays[name] = arrays[name].reshape(*rows.shape, -1)
    return {**arrays, 'passage_mask': np.any(arrays['reader_mask'], axis=-1)}

  def _lengths(
    self, head: RaggedTokens, passages: Int[np.ndarray, 'b k'], tails: RaggedTokens
  ) -> tuple[dict[str, int], int]:
    """Of the segments' arrays, and of prompts without heads."""
    text, layout = self.tokenizer.text, self._layout
    of_head = _rounded(int(head.lengths.max()), _HEAD_STEP)
    lengths = {'head': of_head, 'tail': text.reader_query_length, 'reader': text.passage_length}
    if not layout.compact:
      return lengths, self._space - len(self._bare_head)
    longest = int(passages.max())
    if layout.together:
      longest = int(passages[:, : layout.n_read].sum(-1).max())
    else:
      lengths['reader'] = min(text.passage_length, _rounded(max(longest, 1), _PASSAGE_STEP))
    return lengths, _rounded(longest + int(tails.lengths.max()), _PROMPT_STEP)

  def _segments(self, rows: np.ndarray, titles: RaggedTokens | None = None) -> RaggedTokens:
    """A passage's segment for each row; none at -1, and closed-book."""
    if self.store is None or self.tokenizer.text.closed_book:
      return RaggedTokens.empty(rows.size)
    there = rows.ravel() >= 0
    passages = self.store.passages(rows.ravel()[there])
    names = [passage.merged_title for passage in passages]
    if titles is not None:
      names = list(map(self.tokenizer.reader_vocabulary.decode, titles.to_lists()))
      names = [name for name, shown in zip(names, there) if shown]
    found = iter(self._prompts.passages([*zip(names, (one.text for one in passages))]))
    return RaggedTokens.from_lists(next(found) if shown else [] for shown in there)

  def _shown(
    self, lengths: Int[np.ndarray, 'b k'], heads: Sequence[Sequence[int]], asked: np.ndarray
  ) -> Int[np.ndarray, 'b k']:
    """How many tokens of each passage fit; the worst are cut first.

    Raises:
      ValueError: head and question alone are too long.
    """
    around = np.array(list(map(len, heads))) + asked
    space = self._space - around[:, None]
    if np.any(space < 0):
      row, text = int(np.argmin(space)), self.tokenizer.text
      remedy = 'shorten system_prompt or reader_query_length'
      if heads != [self._bare_head]:
        remedy = 'show fewer or shorter demonstrations (--num_demonstrations, '
        remedy += '--demonstration_passages)'
      raise ValueError(
        f'A prompt of {around[row]} tokens without passages, {around[row] - asked[row]} of them '
        f'before the question, is longer than its {self._space} (TextConfig.prompt_length '
        f'{text.prompt_length}, {self._layout.positions} positions of the reader, of which '
        f'{text.target_length} are of the answer): {remedy}, or raise prompt_length where the '
        'positions allow it.'
      )
    before: Int[np.ndarray, 'b k'] = np.zeros_like(lengths)
    if self._layout.together and lengths.shape[1] > (self._layout.kept or lengths.shape[1]):
      # Any of the candidates may be read, so that each has its share.
      space = space // min(filter(None, (self._layout.kept, self._layout.n_read)))
    elif self._layout.together:
      n_read = self._layout.n_read or lengths.shape[1]
      before[:, 1:n_read] = np.cumsum(lengths, axis=1)[:, : n_read - 1]
    fits = np.clip(space - before, 0, lengths)
    return np.where(fits < np.minimum(lengths, _LEAST_TOKENS), 0, fits)

  def characters_read(
    self,
    queries: QueryBatch,
    rows: np.ndarray,
    passages: Sequence[Passage],
    heads: Sequence[Sequence[int]] | None = None,
  ) -> list[tuple[int | None, int | None]]:
    if self.store is None:
      raise ValueError('There is no corpus: the model is closed-book.')
    pad_id = self.tokenizer.reader_vocabulary.pad_id
    asked = np.sum(queries.reader_query_tokens != pad_id, axis=-1)
    lengths = self._segments(rows).lengths.reshape(rows.shape)
    shown = self._shown(lengths, heads or [self._bare_head], asked)
    whole = np.where(shown < lengths, shown, self.tokenizer.text.passage_length)
    read = [
      self._prompts.characters_read(passage.merged_title, passage.text, length)
      for passage, length in zip(passages, whole.ravel().tolist())
    ]
    return [(one['title'], one['text']) for one in read]


def _rounded(length: int, step: int) -> int:
  return -(-length // step) * step
