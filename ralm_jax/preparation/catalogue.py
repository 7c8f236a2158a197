"""The benchmarks: which files each is published in, and what they become."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from ralm_jax.preparation import addresses
from ralm_jax.preparation.addresses import Source

# What copies are called.
_TRAIN, _DEV, _TEST = ('*train*',), ('*dev*', '*val*'), ('*test*',)


@dataclasses.dataclass(frozen=True)
class Part:
  """A file that a benchmark consists of."""

  role: str  # What it is; also the name of the split where it becomes one.
  # Of the file as published, the preferred one first; patterns of `fnmatch`, in lower case, of the
  # name or of folder/name.
  names: tuple[str, ...]
  # Further patterns, for copies; only where nothing has one of `names`.
  others: tuple[str, ...] = ()
  record_format: str = ''  # Of its records; '' where it holds none.
  answers: bool = True  # Whether a record without an answer is an error.
  many: bool = False  # Whether it may be several files.
  optional: bool = False  # Whether nobody misses it.


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A benchmark, or a variant of one."""

  name: str
  parts: tuple[Part, ...]  # Its files. A file belongs to the first part that has its name.
  protocol: str  # What becomes of them, see `protocols.PROTOCOLS`.
  sources: tuple[Source, ...]  # Where the publisher keeps them; () where there is no address.
  home: str
  options: tuple[str, ...] = ()  # Of the command that it knows.
  variant: str = ''  # '' where there is only one.

  @property
  def title(self) -> str:
    return f'{self.name} ({self.variant})' if self.variant else self.name

  def expected(self) -> str:
    """What its files are called, for errors."""
    return ', '.join(f'{part.names[0]} ({part.role})' for part in self.parts if not part.optional)

  def example(self) -> str:
    """A role to show in errors."""
    return next(part.role for part in self.parts if not part.optional)

  def by_hand(self) -> str:
    """Where to get its files, for errors."""
    return f'Get the files by hand from {self.home}, and pass them with --from FILE_OR_FOLDER.'


def _splits(record_format: str, **names: tuple[str, ...]) -> tuple[Part, ...]:
  """Parts named train, valid, dev and test.

  Copies may be called so, too, but for dev, which is made of train without a file: a file that
  only happens to be called so would take its place silently.
  """
  others = {'train': _TRAIN, 'valid': _DEV, 'test': _TEST, 'dev': ()}
  return tuple(
    Part(role, patterns, others[role], record_format, optional=role == 'dev')
    for role, patterns in names.items()
  )


def _indexes(prefix: str) -> tuple[Part, ...]:
  return tuple(
    Part(f'index_{split}', (f'{prefix}.{split}.idx.json',), optional=True)
    for split in ('train', 'dev', 'test')
  )


def _fever(kind: str) -> Benchmark:
  parts = (
    Part('train', ('train.jsonl',), _TRAIN, kind),
    Part('dev', ('shared_task_dev.jsonl', 'dev.jsonl'), (), kind),
    Part('test', ('shared_task_test.jsonl', 'test.jsonl'), (), kind, answers=False),
    Part('paper_dev', ('paper_dev.jsonl', 'paper_dev*.jsonl'), (), kind, optional=True),
    Part('paper_test', ('paper_test.jsonl', 'paper_test*.jsonl'), (), kind, optional=True),
  )
  home = 'https://fever.ai/dataset/fever.html'
  return Benchmark(kind, parts, 'as_published', addresses.FEVER, home, ('shots',))


# Our name of a set of KILT to KILT's, the same but for two.
KILT_SETS = {
  name: {'aida': 'aidayago2', 'zsre': 'structured_zeroshot'}.get(name, name)
  for name in 'fever aida wned cweb trex zsre nq hotpotqa triviaqa eli5 wow'.split()
}
TRIVIAQA_QUESTIONS = 'triviaqa_questions'


def _kilt(variant: str, sets: Sequence[str]) -> Benchmark:
  parts: list[Part] = []
  sources: dict[str, Source] = {}
  for name in sets:
    theirs = KILT_SETS[name]
    for split, spellings in (
      ('train', ('train', 'train_id')),
      ('dev', ('dev', 'dev_id')),
      ('test', ('test_without_answers', 'test', 'test_id_without_answers')),
    ):
      names = tuple(f'{theirs}-{spelling}-kilt.jsonl' for spelling in spellings)
      parts.append(Part(f'{name}/{split}', names, (), f'kilt_{name}', answers=split != 'test'))
    sources |= {source.name: source for source in addresses.kilt(theirs)}
  if 'triviaqa' in sets:
    names = tuple(f'wikipedia-{s}.json' for s in ('train', 'dev', 'test-without-answers'))
    parts.append(Part(TRIVIAQA_QUESTIONS, names, many=True, optional=True))
  home = 'https://github.com/facebookresearch/KILT'
  return Benchmark('kilt', tuple(parts), 'kilt', tuple(sources.values()), home, ('shots',), variant)


def _mmlu(variant: str) -> Benchmark:
  # `auxiliary_train` has a file mc_test.csv: it comes first.
  parts = (
    Part('auxiliary', ('auxiliary_train/*.csv',), (), 'mmlu', many=True, optional=True),
    Part('dev', ('*_dev.csv',), (), 'mmlu', many=True, optional=True),
    Part('valid', ('*_val.csv', '*_valid.csv'), (), 'mmlu', many=True),
    Part('test', ('*_test.csv',), (), 'mmlu', many=True),
  )
  home = 'https://github.com/hendrycks/test'
  options = ('auxiliary_valid',) if variant == 'transfer' else ()
  return Benchmark('mmlu', parts, f'mmlu_{variant}', addresses.MMLU, home, options, variant)


_HIDDEN_TEST = ('unfiltered-web-test-without-answers.json',)
_WEB_QUESTIONS_TRAIN = ('webquestions.examples.train.json', 'trainmodel.json')
_ALL = (
  Benchmark(
    'nq_open',
    _indexes('nq')
    + _splits(
      'nq_open',
      train=('nq-open.train.jsonl',),
      # The hidden test set was never published: dev takes its place.
      test=('nq-open.dev.jsonl',),
      # FiD's and DPR's names.
      dev=('dev.jsonl', 'dev.json', 'nq-dev.qa.*'),
    ),
    'indexed',
    addresses.NQ_OPEN,
    'https://github.com/google-research-datasets/natural-questions',
    ('shots', 'dev_fraction'),
  ),
  Benchmark(
    'triviaqa',
    (
      *_indexes('tqa'),
      Part('hidden_test', _HIDDEN_TEST, (), 'triviaqa', answers=False, optional=True),
      *_splits(
        'triviaqa',
        train=('unfiltered-web-train.json',),
        test=('unfiltered-web-dev.json',),
        dev=('dev.jsonl', 'dev.json', 'trivia-dev.qa.*'),
      ),
    ),
    'indexed',
    addresses.TRIVIAQA_UNFILTERED,
    'https://nlp.cs.washington.edu/triviaqa/',
    ('shots', 'dev_fraction'),
    'unfiltered',
  ),
  Benchmark(
    'triviaqa',
    (
      Part('train', ('web-train.json',), _TRAIN, 'triviaqa'),
      Part('dev', ('web-dev.json',), (), 'triviaqa'),
      Part('test', ('web-test-without-answers.json',), (), 'triviaqa', answers=False),
    ),
    'as_published',
    addresses.TRIVIAQA_FILTERED,
    'https://nlp.cs.washington.edu/triviaqa/',
    ('shots',),
    'filtered',
  ),
  Benchmark(
    'web_questions',
    (
      Part('train', _WEB_QUESTIONS_TRAIN, _TRAIN, 'web_questions'),
      Part('dev', ('devtest.json', 'val.json'), _DEV, 'web_questions', many=True, optional=True),
      Part('test', ('webquestions.examples.test.json', 'test.json'), _TEST, 'web_questions'),
    ),
    'indexed',
    addresses.WEB_QUESTIONS,
    'https://nlp.stanford.edu/software/sempre/ or '
    'https://github.com/brmson/dataset-factoid-webquestions',
    ('shots', 'dev_fraction'),
  ),
  Benchmark(
    'curated_trec',
    _splits(
      'curated_trec',
      train=('large2180-train.tsv', 'curatedtrec-train.*', 'curated-train.tsv'),
      test=('large2180-test.tsv', 'curatedtrec-test.*', 'curated-test.tsv'),
      dev=('curatedtrec-dev.*',),
    ),
    'indexed',
    addresses.CURATED_TREC,
    'https://github.com/brmson/dataset-factoid-curated',
    ('shots', 'dev_fraction'),
  ),
  _fever('fever'),
  _fever('fever_2way'),
  Benchmark(
    'fever_symmetric',
    tuple(
      Part(role, (f'fever_symmetric_{role.removeprefix("v0.1_")}.jsonl',), (), 'fever_symmetric')
      for role in ('v0.1_full', 'v0.1_generated', 'dev', 'test')
    ),
    'as_published',
    addresses.FEVER_SYMMETRIC,
    'https://github.com/TalSchuster/FeverSymmetric',
  ),
  _kilt('all', tuple(KILT_SETS)),
  *(_kilt(name, (name,)) for name in KILT_SETS),
  *(_mmlu(variant) for variant in ('zero_shot', 'five_shot', 'multitask', 'transfer')),
  Benchmark(
    'ms_marco',
    (
      Part('train', ('train_v2.1.json',), _TRAIN, 'ms_marco'),
      Part('dev', ('dev_v2.1.json',), _DEV, 'ms_marco'),
      Part('test', ('eval_v2.1_public.json',), (), 'ms_marco', answers=False),
    ),
    'as_published',
    addresses.MS_MARCO,
    'https://microsoft.github.io/msmarco/ (under its terms of use)',
    ('shots',),
  ),
  Benchmark(
    'jeopardy',
    (Part('all', ('jeopardy_questions1.json',), ('*jeopardy*.json*',), 'jeopardy', optional=True),)
    + _splits('jeopardy', train=('train.jsonl',), dev=('dev.jsonl',), test=('test.jsonl',)),
    'jeopardy',
    (),
    'https://www.reddit.com/r/datasets/comments/1uyd0t/200000_jeopardy_questions_in_a_json_file/ '
    '(JEOPARDY_QUESTIONS1.json; it has no fixed address)',
    ('shots', 'dev_fraction', 'test_fraction'),
  ),
  Benchmark(
    'templama',
    _splits(
      'templama', train=('train.json',), valid=('val.json', 'valid.json'), test=('test.json',)
    ),
    'templama',
    addresses.TEMPLAMA,
    'https://github.com/google-research/language/tree/master/language/templama',
    ('years',),
  ),
  *(
    Benchmark(
      'wikitext',
      tuple(
        Part(split, (f'wiki.{split}.tokens', f'wiki.{split}.raw', f'{split}.txt'))
        for split in ('train', 'valid', 'test')
      ),
      'wikitext',
      sources,
      'https://wikitext.smerity.com/',
      variant=variant,
    )
    for variant, sources in (('2', addresses.WIKITEXT_2), ('103', addresses.WIKITEXT_103))
  ),
)

# Name to variant to benchmark; the first variant is the default.
BENCHMARKS: dict[str, dict[str, Benchmark]] = {}
for _benchmark in _ALL:
  BENCHMARKS.setdefault(_benchmark.name, {})[_benchmark.variant] = _benchmark


def find(name: str, variant: str | None = None) -> Benchmark:
  """A benchmark by name; ValueError where there is no such benchmark, or no such variant of it."""
  if name not in BENCHMARKS:
    raise ValueError(f'there is no benchmark {name!r}; there are {", ".join(BENCHMARKS)}')
  variants = BENCHMARKS[name]
  if variant is None:
    return next(iter(variants.values()))
  if variant not in variants:
    named = ', '.join(filter(None, variants))
    remedy = f'it has {named}' if named else 'leave it out'
    raise ValueError(f'{name} has no variant {variant!r}; {remedy}')
  return variants[variant]
