"""How well a ranking of passages serves a question.

All scores start from a *rank*: the 1-based position of the first passage that counts as a hit. Two
kinds of hit are known: the passage contains an answer string (the measure of DPR, Karpukhin et al.,
2020, section 5.1, https://arxiv.org/abs/2004.04906), or it is a gold passage that the data name.

A rank is
  1, 2, 3, ...  the position of the first hit,
  math.inf      when no retrieved passage is a hit (recall 0, reciprocal 0),
  None          when the measure does not apply: the data name no gold passage
                or no answer. Such a question is left out of the averages.

With several gold passages one of them is enough. A passage is known by its id
only: where a corpus holds copies of a gold passage, finding the copy is a miss
by gold id and usually a hit by answer string. TypeError is raised for a text in place
of a list of them, and ValueError for a rank or k below 1.
"""

from collections.abc import Hashable, Iterable, Sequence
import dataclasses
import functools
import itertools
import math
import re
import unicodedata

import numpy as np

from ralm_jax.losses.array_types import Bool


@functools.cache
def _token_pattern() -> re.Pattern[str]:
  """A run of letters, digits and marks, or one other visible character.

  The standard library knows no \\p{M}, and its \\w has no combining marks, at
  which NFD text would fall apart; so their ranges are spelled out.
  """
  ranges: list[list[int]] = []
  # Unicode has marks in its first two planes and, as variation selectors, here.
  for code in itertools.chain(range(0x20000), range(0xE0000, 0xE1000)):
    if unicodedata.category(chr(code))[0] == 'M':
      if ranges and ranges[-1][1] == code - 1:
        ranges[-1][1] = code
      else:
        ranges.append([code, code])
  marks = ''.join(f'{chr(first)}-{chr(last)}' for first, last in ranges)
  return re.compile(rf'(?:[^\W_]|[{marks}])+|\S')


def answer_tokens(text: str) -> list[str]:
  """Splits text as DPR's SimpleTokenizer does, lower-cased, in unicode NFD.

  A token is a run of letters, digits and combining marks, or a single other character (punctuation
  or symbol); separators and control characters split and vanish.
  """
  return [
    token.lower()
    for token in _token_pattern().findall(unicodedata.normalize('NFD', text))
    # Python takes fewer characters for spaces than unicode has separators
    # and controls (a zero-width space is one).
    if len(token) > 1 or token.isalnum() or unicodedata.category(token)[0] not in 'ZC'
  ]


def _joined(text: str) -> str:
  """The tokens between single spaces: a token sequence is then a substring."""
  return f' {" ".join(answer_tokens(text))} '


def has_answer(text: str, answers: Sequence[str]) -> bool:
  """Whether an answer's tokens occur in the text, in order and adjacent.

  'art' does not occur in 'party', nor '19' in '1945', while 'Newton D. Baker' occurs in 'NEWTON D .
  BAKER'. Articles and punctuation count, as in DPR. Unlike there, an answer without any token
  occurs nowhere (DPR finds it in every passage).
  """
  return any(answer_hits([text], answers))


def answer_hits(texts: Iterable[str], answers: Sequence[str]) -> Bool[np.ndarray, ' k']:
  """`has_answer` of each passage of a ranking."""
  if isinstance(answers, str):
    raise TypeError('answers must be a list of strings; write [answer]')
  wanted = [joined for answer in answers if (joined := _joined(answer)).strip()]
  return np.array(
    [any(answer in passage for answer in wanted) for passage in map(_joined, texts)], dtype=bool
  )


def gold_hits(
  passage_ids: Iterable[Hashable], gold_passage_ids: Iterable[Hashable]
) -> Bool[np.ndarray, ' k']:
  """Whether each passage of a ranking is a gold one.

  Ids are compared as text, since one file may write 7 and another '7'.
  """
  if isinstance(gold_passage_ids, str):
    raise TypeError('gold_passage_ids must be a list; write [gold_passage_id]')
  gold = {str(gold_id) for gold_id in gold_passage_ids}
  return np.array([str(one) in gold for one in passage_ids], dtype=bool)


def first_hit(hits: Sequence[bool] | np.ndarray) -> float:
  """The 1-based rank of the first hit, best passage first; inf without one."""
  return next((float(rank) for rank, hit in enumerate(hits, 1) if hit), math.inf)


def recall_at_k(rank: float | None, k: int) -> float | None:
  """1.0 if the first hit is among the best k, else 0.0; None for None."""
  if k < 1:
    raise ValueError(f'k is {k}; recall needs at least one passage')
  return None if rank is None else float(_checked(rank) <= k)


def reciprocal_rank(rank: float | None) -> float | None:
  """1 / rank, 0.0 when there is no hit; None for None."""
  return None if rank is None else 1.0 / _checked(rank)


def _checked(rank: float) -> float:
  # `not >=` rather than `<` so that NaN is refused as well.
  if not rank >= 1:
    raise ValueError(f'rank {rank} is not a rank: ranks start at 1')
  return rank


@dataclasses.dataclass(frozen=True)
class RetrievalRanks:
  """The ranks of one question's first hits (see the top of this module)."""

  answer: float | None  #: of the first passage with an answer string
  gold: float | None  #: of the first gold passage


def rank_passages(
  texts: Sequence[str],
  passage_ids: Sequence[Hashable],
  answers: Sequence[str],
  gold_passage_ids: Sequence[Hashable],
) -> RetrievalRanks:
  """Finds the first hits of one question's ranking, best passage first."""
  if len(texts) != len(passage_ids):
    raise ValueError(
      f'{len(texts)} texts but {len(passage_ids)} passage ids: a ranking has one of each for '
      'every passage'
    )
  return RetrievalRanks(
    answer=first_hit(answer_hits(texts, answers)) if answers else None,
    gold=first_hit(gold_hits(passage_ids, gold_passage_ids)) if gold_passage_ids else None,
  )


def rank_metrics(
  rank: float | None, retrieved: int, ks: Sequence[int], kind: str
) -> dict[str, float | None]:
  """The recalls and the reciprocal rank of one question: `recall@1_answer`, `mrr_gold`, ….

  Cut-offs above the number of passages `retrieved` (asked for, the same for all
  questions) are left out: a recall@20 of ten passages would be a recall@10 in disguise.
  """
  metrics = {f'recall@{k}_{kind}': recall_at_k(rank, k) for k in ks if k <= retrieved}
  metrics[f'mrr_{kind}'] = reciprocal_rank(rank)
  return metrics
