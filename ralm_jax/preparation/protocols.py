"""What becomes of a benchmark's files: the splits of the papers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
import dataclasses
import functools
import os
from typing import Any

from ralm_jax.data.questions import by_year, reading as questions_lib
from ralm_jax.data.questions.formats import kilt
from ralm_jax.preparation import catalogue, splits
from ralm_jax.preparation.catalogue import Benchmark, Part
from ralm_jax.preparation.reading import Reader, Records

Question = questions_lib.Question


@dataclasses.dataclass(frozen=True)
class Options:
  """What the user may choose; None for the benchmark's own choice."""

  # Of the training questions, where no file or list says which ones are dev.
  dev_fraction: float = 0.1
  test_fraction: float = 0.2  # Of all questions, where none are test.
  years: tuple[str, ...] = ('2017', '2020')  # Whose answers shall differ; () for all questions.
  auxiliary_valid: int = 5000  # How many auxiliary questions of MMLU are for validation.


@dataclasses.dataclass(frozen=True)
class Split:
  """One file to write."""

  name: str
  questions: Iterable[Question] | None = None  # None where it is of passages.
  # Objects of id, title, section and text.
  passages: Iterable[dict[str, Any]] | None = None
  # The whole file that a training split was taken from, which lists of places speak of; None where
  # that is the split itself.
  original: list[Question] | None = None
  how: str = ''  # How it was made, where that is not plain.


@dataclasses.dataclass(frozen=True)
class Inputs:
  """A benchmark's files, ready to be read."""

  benchmark: Benchmark
  files: dict[str, list[str]]
  reader: Reader
  options: Options
  skips: bool
  guessed: Collection[str] = ()

  def part(self, role: str) -> Part:
    return next(part for part in self.benchmark.parts if part.role == role)

  def questions(self, role: str, records: Records | None = None) -> Iterator[Question]:
    """The questions of a part that there is."""
    part = self.part(role)
    return self.reader.questions(role, self.files[role], part.record_format, part.answers, records)

  def split(self, role: str, how: str = '') -> Split:
    """A part as it is."""
    return Split(role, self.questions(role), how=self.how(role, how))

  def how(self, role: str, how: str = '') -> str:
    """`Split.how` of a part, with its file where only a guess tells that."""
    names = ', '.join(map(os.path.basename, self.files[role]))
    return '; '.join(filter(None, (f'from {names}' if role in self.guessed else '', how)))

  def need(self, *roles: str) -> None:
    """Raises ValueError if a part is missing."""
    for role in roles:
      if role not in self.files:
        raise ValueError(
          f'{self.benchmark.title} needs {self.part(role).names[0]}, too; '
          f'pass it with --from, or a file of another name with '
          f'--from {role}=FILE. It is published at {self.benchmark.home}'
        )


def _as_published(inputs: Inputs) -> Iterator[Split]:
  """Each part is a split."""
  return map(inputs.split, inputs.files)


def _indexed(inputs: Inputs) -> Iterator[Split]:
  """Train, dev and test as FiD and Atlas divide them.

  Dev is a part of the published training questions: the one that FiD's lists
  name, or, without them, one that a hash of the question decides.
  """
  lists = {
    role.removeprefix('index_'): paths[0]
    for role, paths in inputs.files.items()
    if role.startswith('index_')
  }
  if 'train' in inputs.files:
    yield from _train_and_dev(inputs, lists)
  elif set(lists) & {'train', 'dev'}:
    inputs.need('train')
  elif 'dev' in inputs.files:
    yield inputs.split('dev')
  if 'test' in inputs.files:
    if 'test' in lists:
      chosen = splits.at(list(inputs.questions('test')), lists['test'], skipped=inputs.skips)
      yield Split('test', chosen, how=inputs.how('test', "FiD's list"))
    else:
      yield inputs.split('test')
  if 'hidden_test' in inputs.files:
    yield Split('hidden_test', inputs.questions('hidden_test'))


def _train_and_dev(inputs: Inputs, lists: dict[str, str]) -> Iterator[Split]:
  original = list(inputs.questions('train'))
  if 'train' in lists or 'dev' in lists:
    inputs.need('index_train', 'index_dev')
    how = inputs.how('train', "FiD's list")
    for name in ('train', 'dev'):
      chosen = splits.at(original, lists[name], skipped=inputs.skips)
      yield Split(name, chosen, original=original, how=how)
  elif 'dev' in inputs.files:
    yield Split('train', original, how=inputs.how('train'))
    yield inputs.split('dev')
  elif not (fraction := inputs.options.dev_fraction):
    yield Split('train', original, how=inputs.how('train'))
  else:
    carved = splits.carve(original, {'dev': fraction}, 'train')
    how = inputs.how('train', f'by hash, {fraction:g} of train are dev')
    for name in ('train', 'dev'):
      yield Split(name, carved[name], original=original, how=how)


def _jeopardy(inputs: Inputs) -> Iterator[Split]:
  """The published file has no splits; SearchQA's, which RAG used, are files."""
  if 'all' not in inputs.files:
    yield from _as_published(inputs)
    return
  if len(inputs.files) > 1:
    raise ValueError(
      'jeopardy is either one file of all clues or files of splits; pass one kind with --from'
    )
  dev, test = inputs.options.dev_fraction, inputs.options.test_fraction
  original = list(inputs.questions('all'))
  fractions = {'test': test, 'dev': dev}
  carved = splits.carve(original, fractions, 'train', key=lambda question: question.answers[0])
  how = inputs.how('all', f'by hash of the clue, {dev:g} dev, {test:g} test')
  for name in ('train', 'dev', 'test'):
    if name in carved:
      yield Split(name, carved[name], original=original, how=how)


def _templama(inputs: Inputs) -> Iterator[Split]:
  """Questions whose answers differ between years, each year a file."""
  years = inputs.options.years
  for role in inputs.files:
    if not years:
      yield inputs.split(role)
      continue
    how = inputs.how(role, f'answers that changed, {" to ".join(years)}')
    for year, questions in by_year.disjoint_years(inputs.questions(role), years).items():
      yield Split(f'{role}.{year}', questions, how=how)


def _kilt(inputs: Inputs) -> Iterator[Split]:
  """Every set that there is, each a folder."""
  if set(inputs.files) == {catalogue.TRIVIAQA_QUESTIONS}:
    inputs.need(inputs.benchmark.example())
  triviaqa: dict[str, str] = {}
  if any(role.startswith('triviaqa/') for role in inputs.files):
    triviaqa = kilt.triviaqa_questions(inputs.files.get(catalogue.TRIVIAQA_QUESTIONS, []))
  for role in inputs.files:
    if role == catalogue.TRIVIAQA_QUESTIONS:
      continue
    records = None
    if role.startswith('triviaqa/'):
      records = functools.partial(_triviaqa_records, inputs.part(role), triviaqa)
    yield Split(role, inputs.questions(role, records))


def _triviaqa_records(
  part: Part, questions: dict[str, str], path: str, on_error: Any
) -> Iterable[Any]:
  return kilt.with_questions(part.record_format, questions).records(path, part.answers, on_error)


def _mmlu(inputs: Inputs, variant: str) -> Iterator[Split]:
  """Atlas's four ways to use MMLU.

  zero_shot trains on nothing; five_shot on five questions of a subject, each subject for itself;
  multitask on those of all subjects together; transfer on the auxiliary questions and those.
  """
  evaluation = [role for role in ('valid', 'test') if role in inputs.files]
  if not evaluation:
    inputs.need('test')
  if variant != 'zero_shot':
    inputs.need('dev')
    dev = list(inputs.questions('dev'))
    if variant == 'five_shot':
      by_subject: dict[str, list[Question]] = {}
      for question in dev:
        by_subject.setdefault(question.group, []).append(question)
      for subject, questions in by_subject.items():
        yield Split(f'train/{subject}', questions)
    elif variant == 'multitask':
      yield Split('train', dev)
    else:
      inputs.need('auxiliary')
      train, valid = splits.auxiliary(
        list(inputs.questions('auxiliary')), inputs.options.auxiliary_valid
      )
      how = f'shuffled with seed {splits.AUXILIARY_SEED}'
      yield Split('train', train + dev, how=f'auxiliary {how}, then dev')
      yield Split('auxiliary_valid', valid, how=f'the last auxiliary ones, {how}')
  for role in evaluation:
    yield Split(role, inputs.questions(role))


def _wikitext(inputs: Inputs) -> Iterator[Split]:
  """Passages with title and section."""
  from ralm_jax.data import wikitext

  def of(role: str, passage: dict[str, str]) -> dict[str, str]:
    # The published files are all called `wiki.`, and ids begin so.
    return {
      name: value
      if name not in ('id', 'document') or value.startswith(f'{role}-')
      else f'{role}-{value}'
      for name, value in passage.items()
    }

  for role, paths in inputs.files.items():
    yield Split(role, passages=map(functools.partial(of, role), wikitext.read_articles(paths[0])))


PROTOCOLS: dict[str, Callable[[Inputs], Iterator[Split]]] = {
  'as_published': _as_published,
  'indexed': _indexed,
  'jeopardy': _jeopardy,
  'templama': _templama,
  'kilt': _kilt,
  'wikitext': _wikitext,
  **{
    f'mmlu_{variant}': functools.partial(_mmlu, variant=variant)
    for variant in ('zero_shot', 'five_shot', 'multitask', 'transfer')
  },
}
