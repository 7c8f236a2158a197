"""What an example must not see, among the passages that a search finds."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import numpy as np

from ralm_jax.data import dates
from ralm_jax.data.corpus.passage_ids import NO_PASSAGE
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.option_values import SEARCH_FILTERS

_KeysOf = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class SearchFilter:
  """What an example must not see, and how the search gets around it.

  A search that was left short is repeated for the examples concerned, twice as deep each time.
  """

  #: 'passage' drops the passages an example excludes, with all their parts and versions; 'document'
  #: also every other passage of the same source document, for tasks made of passages, whose
  #: neighbours would give the answer away; 'none' drops nothing, not even by date. Documents that
  #: an example excludes by their names are dropped by the first two.
  by: str = 'passage'
  overretrieve_ratio: float = 2.0  #: passages asked for at first, as a multiple of those wanted
  #: the deepest a search goes; what is still missing then is left empty, and the log says so once.
  #: None for the whole index.
  max_candidates: int | None = 65_536

  def __post_init__(self):
    if self.by not in SEARCH_FILTERS:
      raise ValueError(f'SearchFilter.by {self.by!r} must be one of {", ".join(SEARCH_FILTERS)}.')
    if self.overretrieve_ratio < 1:
      raise ValueError(
        f'SearchFilter.overretrieve_ratio must be at least 1, not {self.overretrieve_ratio}.'
      )

  def hidden(
    self,
    store: PassageStore,
    exclude_rows: np.ndarray | None,
    max_dates: np.ndarray | None,
    exclude_document_keys: np.ndarray | None = None,
  ) -> Hidden | None:
    """What a batch must not see, None for nothing; see `PassageRetriever.search`."""
    if self.by == 'none':
      return None

    def unless(nothing: int, values: np.ndarray | None) -> np.ndarray | None:
      return None if values is None or np.all(values == nothing) else values

    exclude_rows = unless(NO_PASSAGE, exclude_rows)
    max_dates = unless(dates.NO_DATE_BOUND, max_dates)
    exclude_document_keys = unless(0, exclude_document_keys)
    if all(one is None for one in (exclude_rows, max_dates, exclude_document_keys)):
      return None
    if max_dates is not None and not store.has_dates():
      raise ValueError(
        f'The questions have dates, but no passage of the corpus {store.directory} has one: none '
        "could be shown. Add 'date' to the passages and build the corpus anew, or bind "
        "SearchFilter.by = 'none'."
      )
    excluded: list[tuple[_KeysOf, np.ndarray]] = []
    if exclude_rows is not None:
      # Keys, not rows: a passage may have been replaced in the index since.
      for keys_of in (store.sources, store.documents)[: 2 if self.by == 'document' else 1]:
        excluded.append((keys_of, keys_of(exclude_rows)))
    if exclude_document_keys is not None:
      excluded.append((store.documents, exclude_document_keys))
    return Hidden(store, max_dates, excluded)


@dataclasses.dataclass(frozen=True)
class Hidden:
  """What the examples of a batch must not see."""

  store: PassageStore
  max_dates: np.ndarray | None
  excluded: list[tuple[_KeysOf, np.ndarray]]  #: what gives a passage's keys, and those excluded

  def among(self, rows: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """bool [n, k]: which of rows [n, k] examples [n] must not see."""
    result = np.zeros(rows.shape, bool)
    for keys_of, excluded in self.excluded:
      keys = keys_of(rows)
      # A loop over few, since [n, k, excluded] may be much.
      for column in excluded[examples].T:
        result |= keys == column[:, None]
    if self.max_dates is not None:
      # What has no date counts as later than any bound.
      result |= self.store.dates(rows) > self.max_dates[examples, None]
    return result
