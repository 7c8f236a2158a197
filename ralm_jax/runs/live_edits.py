"""Live edits: passages added to, replaced in and deleted from a served index.

New passages are appended to the corpus first, then one edit of the index puts
their embeddings in and takes out what they replace: a search sees all of an
edit or nothing. Where a command is interrupted between the two, the passages
are stored but not yet found, and the same command completes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import logging
from typing import Any

import numpy as np

from ralm_jax.data.corpus import cut_text, passage_store, passages as passages_lib
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.data.corpus.shard_set import FoundRows
from ralm_jax.losses.array_types import Float, Int, PyTree
from ralm_jax.retrieval import connect, embedding, prompt_assembler, retriever
from ralm_jax.retrieval.connect import Connection
from ralm_jax.retrieval.embedding import PassageEmbedder
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs import opening

_CHUNK = 8192  # Passages tokenised and embedded at a time.


@dataclasses.dataclass(frozen=True)
class Edited:
  """What an edit did."""

  put: Int[np.ndarray, ' put']  #: rows of the corpus that the index has since
  deleted: Int[np.ndarray, ' deleted']  #: rows that it had
  generation: int  #: of the index; an edit makes no new one
  count: int  #: passages that it holds now


def put(
  passages: Sequence[Passage],
  *,
  checkpoint: str,
  index: str | None = None,
  retrieval_address: str | None = None,
  corpus: str | None = None,
  retry_for_s: float = 30.0,
  replace: bool = False,
  known: bool = False,
) -> Edited:
  """Puts passages into the corpus and the index.

  A passage that is stored already, word for word, is put into the index again:
  after an interruption, or where it was deleted.

  With `replace` a passage may take the place of another of its id; with `known` the corpus must
  have each id.

  Raises:
    ValueError: no passages, an id that is taken by another passage, or an index of another corpus.
    KeyError: an id is unknown, with `known`.
  """
  passages = list(passages)
  if not passages:
    raise ValueError('No passages were given.')
  opened = opening.open_checkpoint(checkpoint)
  with _connected(index, retrieval_address, corpus, retry_for_s) as connected:
    status = connected.client.status()
    opening.check_dimension(opened.spec, status.dim)
    opening.warn_if_stale(opened, status.metadata)
    store = connected.store
    ids = [passage.id for passage in passages]
    if known:
      store.rows_of(ids)
    new = _not_yet_stored(passages, store)
    if new:
      passage_store.append_passages(store.directory, new, replace=replace)
      store.reload()
    found = store.find(ids)
    rows = np.sort(found.rows[found.is_newest])
    if note := cut_text.note(store, opened.spec.tokenizer.text, rows=rows):
      logging.warning('%s', note)
    embedder = PassageEmbedder(
      opened.spec.model,
      opened.partitioner,
      prompt_assembler.assembler_of(opened.spec, store),
      batch_size=max(8, opened.partitioner.mesh.size),
    )
    return _edit(
      connected.client,
      found,
      ids=rows,
      embeddings=_embed(embedder, opened.params, rows),
      metadata={'corpus_fingerprint': store.fingerprint},
    )


def delete(
  ids: Sequence[str],
  *,
  index: str | None = None,
  retrieval_address: str | None = None,
  corpus: str | None = None,
  retry_for_s: float = 30.0,
) -> Edited:
  """Deletes passages from an index, with all their parts; all or none.

  They stay in the corpus, and out of every generation of the index until they are added again.

  Raises:
    ValueError: no ids, or an index of another corpus.
    LookupError: the corpus or the index does not have a passage.
  """
  ids = list(dict.fromkeys(ids))
  if not ids:
    raise ValueError('No passage ids were given.')
  with _connected(index, retrieval_address, corpus, retry_for_s) as connected:
    connected.store.rows_of(ids)  # names an unknown one
    return _edit(connected.client, connected.store.find(ids), names=ids)


@contextlib.contextmanager
def _connected(
  index: str | None, address: str | None, corpus: str | None, retry_for_s: float
) -> Iterator[Connection]:
  """A connection whose index is of its corpus."""
  source = IndexSource(index, address, corpus, retry_for_s=retry_for_s)
  with connect.connect(source) as connected:
    status = connected.client.status()
    retriever.check_index_of_corpus(status.metadata, status.next_id, connected.store)
    yield connected


def _not_yet_stored(passages: Sequence[Passage], store: PassageStore) -> list[Passage]:
  """Leaves out passages that are stored already, word for word."""
  found = store.find([passage.id for passage in passages])
  stored: list[list[tuple]] = [[] for _ in passages]
  rows = found.rows[found.is_newest]
  for position, part in zip(found.positions[found.is_newest].tolist(), store.passages(rows)):
    stored[position].append(_content(part))
  return [
    passage
    for passage, parts in zip(passages, stored)
    if sorted(parts) != sorted(map(_content, passages_lib.split_long(passage, store.max_words)))
  ]


def _content(passage: Passage) -> tuple[str | int, ...]:
  return (
    passage.id,
    passage.title,
    passage.section,
    passage.text,
    passage.document,
    passage.last_day,
  )


def _embed(
  embedder: PassageEmbedder, params: PyTree, rows: Int[np.ndarray, ' n']
) -> Float[np.ndarray, 'n d']:
  """float16, as the index stores them."""
  chunks = [rows[first : first + _CHUNK] for first in range(0, len(rows), _CHUNK)]
  return np.concatenate(
    [embedding.as_stored(embedder.embed(params, chunk), chunk) for chunk in chunks]
  )


def _edit(
  client: Any, found: FoundRows, *, names: Sequence[str] | None = None, **put_options: Any
) -> Edited:
  """One edit, which deletes every version of each passage but what is put.

  After an interruption the index has not always the newest, and other generations may have others.
  With `names`, each must be there: else LookupError, and nothing has changed.
  """
  put_rows = put_options.get('ids', np.zeros(0, np.int64))
  rows = np.setdiff1d(found.rows, put_rows)
  if names is not None:
    present = ~np.isin(found.rows, client.missing(rows))
    absent = np.setdiff1d(np.arange(len(names)), found.positions[present])
    if len(absent):
      raise LookupError(
        f'The index has no passage {names[absent[0]]!r} any more (nor any '
        'other version of it); nothing was deleted.'
      )
  result = client.edit(delete_ids=rows if len(rows) else None, delete_absent=True, **put_options)
  return Edited(put_rows, np.setdiff1d(rows, result.absent_ids), result.generation, result.count)
