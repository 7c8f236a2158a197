"""From a QueryBatch and retrieved rows to the arrays of a train step."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from ralm_jax.data import batches
from ralm_jax.data.batches import PassageInputs, QueryBatch
from ralm_jax.data.corpus.passage_store import Passage, PassageStore
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text import templates, words
from ralm_jax.data.text.templates import TokenTemplate
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.models.retrieval_lm import ReaderBatch


class Assembler:
  """Builds static ReaderBatches of host arrays; of decoder-only readers `PromptAssembler` does."""

  def __init__(self, tokenizer: QueryTokenizer, store: PassageStore | None):
    """Prepares the templates; no store is closed-book.

    ValueError where the corpus was tokenised with other vocabularies, or without what a format
    needs that begins with the title.
    """
    self.tokenizer = tokenizer
    self.store = store
    if store is not None:
      for side in ('reader', 'retriever'):
        ours = getattr(tokenizer, f'{side}_vocabulary')
        theirs = getattr(store, f'{side}_vocabulary')
        if ours.fingerprint != theirs.fingerprint:
          raise ValueError(
            f'The corpus {store.directory} was tokenised with another {side} '
            f'vocabulary ({theirs.path}) than the model uses ({ours.path}); '
            "build it again with `ralm corpus` and the model's vocabularies."
          )
    self._retriever_template = TokenTemplate.for_retriever(
      tokenizer.retriever_vocabulary, tokenizer.text.retriever_format
    )
    self._check_titles('retriever', self._retriever_template)
    self._prepare_reader()

  def _check_titles(self, side: str, template: TokenTemplate) -> None:
    """Raises ValueError where the corpus lacks the titles that a format begins with."""
    if self.store is not None and templates.TITLE_START in template.fields:
      self.store.tokens(np.zeros(1, np.int64), f'{side}_{templates.TITLE_START}')

  def _prepare_reader(self) -> None:
    text, vocabulary = self.tokenizer.text, self.tokenizer.reader_vocabulary
    self._reader_template = TokenTemplate.for_reader(vocabulary, text.reader_format)
    self._check_titles('reader', self._reader_template)

  def reader_batch(
    self,
    queries: QueryBatch,
    rows: np.ndarray,
    *,
    with_retriever: bool = True,
    passage_embeddings: np.ndarray | None = None,
    titles: RaggedTokens | None = None,
    heads: Sequence[Sequence[int]] | None = None,
  ) -> ReaderBatch:
    """Host arrays of one batch.

    Args:
      queries: the examples; padding rows have no target.
      rows: int64 [b, k] of the corpus, -1 for none.
      with_retriever: also the arrays that train the retriever.
      passage_embeddings: of the index, [b, k, d]; stand in for the passages' tokens.
      titles: b * k titles the reader (the retriever does not) sees instead of the passages' own.
      heads: what the prompts of a decoder-only reader begin with; one for all, or one each. None
        is what they begin with without demonstrations.
    """
    tokenizer = self.tokenizer
    real = queries.is_example[:, None]
    arrays = self._reader_arrays(queries, rows, titles, heads)
    arrays['passage_mask'] = arrays['passage_mask'] & real
    arrays |= {
      'target_tokens': queries.target_tokens,
      'target_mask': (queries.target_tokens != tokenizer.reader_vocabulary.pad_id) & real,
    }
    if with_retriever and self.store is not None:
      arrays['query_tokens'] = queries.query_tokens
      arrays['query_mask'] = queries.query_tokens != tokenizer.retriever_vocabulary.pad_id
      if passage_embeddings is not None:
        arrays['passage_embeddings'] = passage_embeddings
      else:
        passages = self._passages(rows)
        arrays |= {'retriever_tokens': passages.tokens, 'retriever_mask': passages.mask}
    return ReaderBatch(**arrays)

  def _reader_arrays(
    self,
    queries: QueryBatch,
    rows: np.ndarray,
    titles: RaggedTokens | None,
    heads: Sequence[Sequence[int]] | None,
  ) -> dict[str, Any]:
    """`reader_tokens`, `reader_mask`, `passage_mask` and whatever else the reader reads."""
    if heads is not None:
      raise ValueError('Demonstrations are of decoder-only readers; this one reads none.')
    template, length = self._reader_template, self.tokenizer.text.passage_length
    inputs = batches.assemble_reader_inputs(
      queries.reader_query_tokens, rows, self.store, template, length, titles=titles
    )
    return {
      'reader_tokens': inputs.tokens,
      'reader_mask': inputs.mask,
      'passage_mask': inputs.passage_mask,
    }

  def characters_read(
    self,
    queries: QueryBatch,
    rows: np.ndarray,
    passages: Sequence[Passage],
    heads: Sequence[Sequence[int]] | None = None,
  ) -> list[tuple[int | None, int | None]]:
    """Characters of merged title and text that the reader reads of each passage; None for all.

    Rows are int64 [b, k] of the corpus, passages the b * k that lie there; heads as for
    `reader_batch`.
    """
    text, vocabulary = self.tokenizer.text, self.tokenizer.reader_vocabulary
    template, flat = self._reader_template, rows.ravel()
    if self.store is None:
      raise ValueError('There is no corpus: the model is closed-book.')
    asked = np.sum(queries.reader_query_tokens != vocabulary.pad_id, axis=-1)
    lengths = {'query': np.repeat(asked, rows.shape[1])}
    for field in ('title', 'text'):
      # More than all of `passage_length` changes nothing.
      stored = self.store.tokens(flat, f'reader_{field}', max_length=text.passage_length)
      lengths[field] = stored.lengths
    kept = template.shown({**lengths, templates.TITLE_START: lengths['title']}, text.passage_length)
    title = kept.get('title', kept.get(templates.TITLE_START, 0 * flat))
    body = kept.get('text', 0 * flat)

    def characters(content: str, whole: int, read: int) -> int | None:
      return None if read >= whole else words.characters_of(content, vocabulary, int(read))

    return [
      (characters(one.merged_title, *of_title), characters(one.text, *of_text))
      for one, of_title, of_text in zip(
        passages, zip(lengths['title'], title), zip(lengths['text'], body)
      )
    ]

  def answer_recall(self, batch: ReaderBatch, skip: int = 0) -> float:
    """`answer_recall` of a batch, whatever a target begins with.

    Where a first word has ids of its own, an answer is looked for as it stands inside a text; one
    that only the input's very first words hold is missed, and nothing is skipped.
    """
    tokenizer = self.tokenizer
    vocabulary = tokenizer.reader_vocabulary
    if tokenizer.prompts is None and not vocabulary.first_word_differs:
      return answer_recall(batch, skip)
    # Inside a passage the answer's first word has the ids of any other word.
    # These targets hold the answer alone.
    targets = np.full_like(batch.target_tokens, vocabulary.pad_id)
    for i, target in enumerate(batch.target_tokens):
      ids = vocabulary.encode(tokenizer.answer(target))[: targets.shape[1] - 1]
      if np.any(batch.target_mask[i]):
        targets[i, : len(ids) + 1] = [*ids, vocabulary.eos_id]
    seen: dict[str, Any] = {'target_tokens': targets, 'target_mask': targets != vocabulary.pad_id}
    return answer_recall(dataclasses.replace(batch, **seen))

  def passage_inputs(self, rows: np.ndarray) -> PassageInputs:
    """The passage encoder's inputs for rows [n]: tokens [n, 1, p]."""
    return self._passages(rows[:, None])

  def _passages(self, rows: np.ndarray) -> PassageInputs:
    if self.store is None:
      raise ValueError('There is no corpus: the model is closed-book.')
    length = self.tokenizer.text.retriever_passage_length
    return batches.assemble_retriever_inputs(rows, self.store, self._retriever_template, length)


def answer_recall(batch: ReaderBatch, skip: int = 0) -> float:
  """Share of examples whose target tokens stand in a retrieved passage.

  Compared token by token, so it is cheap and slightly stricter than comparing
  text. The reader's own query counts as part of the passage. `skip` leading target
  tokens are left out, such as a sentinel.
  """
  tokens, target = np.asarray(batch.reader_tokens), batch.target_tokens
  # The last target token is the end of sequence.
  lengths = np.asarray(batch.target_mask).sum(-1) - 1 - skip
  asked = (lengths > 0) & np.any(batch.passage_mask, axis=-1)
  if not asked.any():
    return float('nan')
  answers = np.asarray(target)[:, skip:]
  # Where an answer's first token stands; few, and fewer with each one more.
  example, passage, position = np.nonzero(
    (tokens == answers[:, :1, None]) & (np.asarray(batch.passage_mask) & asked[:, None])[..., None]
  )
  for i in range(1, int(lengths.max())):
    at = np.minimum(position + i, tokens.shape[-1] - 1)
    left = lengths[example] <= i
    inside = position + i < tokens.shape[-1]
    left |= inside & (tokens[example, passage, at] == answers[example, i])
    example, passage, position = example[left], passage[left], position[left]
  return len(np.unique(example)) / int(asked.sum())
