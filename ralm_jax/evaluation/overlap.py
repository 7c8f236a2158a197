"""What an evaluation set shares with its training data and with the corpus.

Two kinds of overlap raise a score for a wrong reason. A question that was trained on, or nearly,
can be answered from memory; Lewis et al. (2021, https://arxiv.org/abs/2008.02637) tell such
questions apart from those of which only the answer was trained on, and from those that are new. And
a corpus may hold the question itself, with its answer beside it: the Atlas paper (Izacard et al.
2022) reports MMLU without the questions that are in its Common Crawl index.

  training, exact   the same question once both are normalised as SQuAD's
                    answers are
  training, near    the sets of words have a Jaccard similarity of at least
                    `word_overlap`; two such questions may still differ in the
                    word that matters, so the rows show both
  training, answer  a normalised answer is one of the training answers
  corpus            a run of words of a passage is at least `span_share` of the
                    question, in the same order

A question is clean if no question of the training data is like it and the
corpus does not hold it. An answer seen in training leaves it clean: most are.
Paraphrases in other words, which Lewis et al. marked by hand, are not found.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
import math
from typing import Any

from ralm_jax.data.corpus.passages import Passage
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation import metrics, word_spans
from ralm_jax.evaluation.scores import by_task, retrieval
from ralm_jax.evaluation.word_spans import SpanFinder

# Lewis et al.'s three kinds of question.
CATEGORIES = ('question_overlap', 'answer_overlap', 'no_overlap')


@dataclasses.dataclass(frozen=True)
class Settings:
  """When two texts count as the same."""

  word_overlap: float = 0.8  #: least Jaccard similarity of two questions' words
  span_share: float = 0.75  #: least share of a question that a passage must hold in one run
  min_words: int = 5  #: questions of fewer words are not looked for in passages

  def __post_init__(self):
    for name in ('word_overlap', 'span_share'):
      if not 0.0 < getattr(self, name) <= 1.0:
        raise ValueError(f'{name} is {getattr(self, name)}; it must be over 0 and at most 1')
    if self.min_words < 1:
      raise ValueError(f'min_words is {self.min_words}; it must be at least 1')


@dataclasses.dataclass(frozen=True)
class TrainingMatch:
  """What the training data have of a question, and the one that is most like it."""

  kind: str = ''  # 'exact', 'near', or '' where no question is like it
  id: str = ''  #: of the training question, '' if there is none
  question: str = ''  #: its text
  word_overlap: float = 0.0  # Jaccard similarity of the words
  answer: str | None = None  #: of the evaluation question, that others have too

  @property
  def category(self) -> str:
    """One of `CATEGORIES`."""
    if self.kind:
      return CATEGORIES[0]
    return CATEGORIES[2] if self.answer is None else CATEGORIES[1]


@dataclasses.dataclass(frozen=True)
class CorpusMatch:
  """The passage that has most of a question."""

  passage_id: str
  title: str
  span: str  #: the words shared
  share: float  #: of the question's words
  has_answer: bool
  passages: int = 1  #: how many have `span_share` of the question


def training_matches(
  questions: Sequence[Question], training: Iterable[Question], settings: Settings = Settings()
) -> list[TrainingMatch]:
  """Compares every question with every training question; a match for each."""
  matches = [TrainingMatch() for _ in questions]
  by_text: dict[str, list[int]] = collections.defaultdict(list)
  by_answer: dict[str, list[tuple[int, str]]] = collections.defaultdict(list)
  for number, question in enumerate(questions):
    by_text[_normalized(question)].append(number)
    for answer in by_task.answer_texts(question):
      if normalized := metrics.normalize_answer(answer):
        by_answer[normalized].append((number, answer))
  likeness = _Likeness([q.question for q in questions], settings.word_overlap)
  for other in training:
    for normalized in map(metrics.normalize_answer, by_task.answer_texts(other)):
      for number, answer in by_answer.pop(normalized, ()):
        if matches[number].answer is None:
          matches[number] = dataclasses.replace(matches[number], answer=answer)
    exact = set(by_text.get(_normalized(other), ()))
    found = dict(likeness.to(other.question)) | dict.fromkeys(exact, 1.0)
    for number, overlap in found.items():
      kind = 'exact' if number in exact else 'near'
      known = matches[number]
      if (kind == 'exact', overlap) > (known.kind == 'exact', known.word_overlap):
        matches[number] = dataclasses.replace(
          known, kind=kind, id=other.id, question=other.question, word_overlap=overlap
        )
  return matches


def _normalized(question: Question) -> str:
  return metrics.normalize_answer(question.question) or question.question.strip()


class _Likeness:
  """Sets of words that are like another by Jaccard similarity.

  Two sets that are alike share a word among the rarest few of each (prefix
  filtering: Chaudhuri et al. 2006), so that only these are looked up.
  """

  def __init__(self, texts: Sequence[str], threshold: float):
    self._threshold = threshold
    self._sets = [frozenset(word_spans.words_of(text)) for text in texts]
    self._counts = collections.Counter(word for words in self._sets for word in words)
    self._by_word: dict[str, list[int]] = collections.defaultdict(list)
    for number, words in enumerate(self._sets):
      for word in self._rarest(words):
        self._by_word[word].append(number)

  def _rarest(self, words: frozenset[str]) -> list[str]:
    count = len(words) - math.ceil(self._threshold * len(words) - 1e-9) + 1
    return sorted(words, key=lambda word: (self._counts[word], word))[:count]

  def to(self, text: str) -> Iterator[tuple[int, float]]:
    """Numbers of the texts that are like this one, with the similarity."""
    words = frozenset(word_spans.words_of(text))
    if not words:
      return
    candidates = {number for word in self._rarest(words) for number in self._by_word.get(word, ())}
    for number in sorted(candidates):
      both = len(words & self._sets[number])
      similarity = both / (len(words) + len(self._sets[number]) - both)
      if similarity >= self._threshold:
        yield number, similarity


class CorpusScan:
  """Looks for questions in passages that stream past."""

  def __init__(self, questions: Sequence[Question], settings: Settings = Settings()):
    self._questions = questions
    self._answers = [by_task.answer_texts(question) for question in questions]
    self._finder = SpanFinder(
      [question.question for question in questions], settings.span_share, settings.min_words
    )
    self.matches: dict[int, CorpusMatch] = {}  #: the best so far, by number of the question

  def is_searched(self, number: int) -> bool:
    """Whether a question has enough words to be looked for."""
    return self._finder.is_searched(number)

  def add(self, passages: Sequence[Passage]) -> None:
    """Looks at a chunk of passages; those a question excludes do not count."""
    texts = [f'{passage.merged_title} {passage.text}' for passage in passages]
    for span in self._finder.find(texts):
      question, passage = self._questions[span.question], passages[span.passage]
      if {passage.id, passage.source_id}.intersection(question.exclude_passage_ids):
        continue
      match = CorpusMatch(
        passage_id=passage.id,
        title=passage.merged_title,
        span=self._finder.span_text(span),
        share=span.length / self._finder.n_words(span.question),
        has_answer=retrieval.has_answer(texts[span.passage], self._answers[span.question]),
      )
      known = self.matches.get(span.question)
      if known is not None:
        best = max(known, match, key=lambda m: (m.share, m.has_answer))
        match = dataclasses.replace(best, passages=known.passages + 1)
      self.matches[span.question] = match


def digest(questions: Sequence[Question], settings: Settings) -> str:
  """Identifies what a scan looks for, so that one can be continued."""
  content = [dataclasses.astuple(settings)] + [
    (q.id, q.question, by_task.answer_texts(q), q.exclude_passage_ids) for q in questions
  ]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def report_rows(
  questions: Sequence[Question], training: Sequence[TrainingMatch] | None, corpus: CorpusScan | None
) -> list[dict[str, Any]]:
  """One object a question of the evaluation set.

  It has `id`, `question`, `clean`, `group` where there is one, `training` and `category`
  where there were training data, and `corpus` where there was one: a match, or None; None
  as well for a question too short to be looked for.
  """
  rows = []
  for number, question in enumerate(questions):
    match = corpus.matches.get(number) if corpus else None
    clean = match is None and not (training and training[number].kind)
    row = {'id': question.id, 'question': question.question, 'clean': clean}
    if question.group:
      row['group'] = question.group
    if training is not None:
      row['training'] = dataclasses.asdict(training[number])
      row['category'] = training[number].category
    if corpus is not None:
      row['corpus'] = match and dataclasses.asdict(match)
      row['searched'] = corpus.is_searched(number)
    rows.append(row)
  return rows


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Counts of a report; those of what was not compared are left out."""
  result: dict[str, Any] = {'count': len(rows), 'clean': sum(row['clean'] for row in rows)}
  trained = [row['training'] for row in rows if 'training' in row]
  if trained:
    result['question_exact'] = sum(m['kind'] == 'exact' for m in trained)
    result['question_near'] = sum(m['kind'] == 'near' for m in trained)
    result['answer'] = sum(m['answer'] is not None for m in trained)
    result |= {name: sum(row['category'] == name for row in rows) for name in CATEGORIES}
  if any('corpus' in row for row in rows):
    found = [row['corpus'] for row in rows if row['corpus']]
    result['in_corpus'] = len(found)
    result['in_corpus_with_answer'] = sum(match['has_answer'] for match in found)
    result['too_short'] = sum(not row['searched'] for row in rows)
  groups: dict[str, dict[str, int]] = {}
  for row in rows:
    if 'group' in row:
      counts = groups.setdefault(row['group'], {'count': 0, 'clean': 0})
      counts['count'] += 1
      counts['clean'] += row['clean']
  return result | ({'groups': groups} if groups else {})


def scores_by_cleanness(
  rows: Sequence[Mapping[str, Any]], predictions: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, float | int | None]]:
  """The mean metrics, and `count`, of predictions over all, clean and other questions.

  Those of each of `CATEGORIES`, too, where there were training data. ValueError where a
  prediction is of a question that the report does not have.
  """
  by_id = {row['id']: row for row in rows}
  categories = CATEGORIES if any('category' in row for row in rows) else ()
  parts: dict[str, list[dict[str, float | None]]] = {
    name: [] for name in ('all', 'clean', 'leaked', *categories)
  }
  for prediction in predictions:
    row = by_id.get(prediction.get('id'))
    if row is None:
      raise ValueError(
        f'the prediction of {prediction.get("id")!r} is of no question of the report; '
        'name the questions that were predicted'
      )
    scores = prediction.get('metrics') or {}
    parts['all'].append(scores)
    parts['clean' if row['clean'] else 'leaked'].append(scores)
    if 'category' in row:
      parts[row['category']].append(scores)
  return {name: metrics.means_and_count(scores) for name, scores in parts.items()}
