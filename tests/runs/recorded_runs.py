"""Three training steps of every kind of configuration, by the command alone.

`python recorded_runs.py OUTPUT.json [NAME ...]` trains each of `CONFIGURATIONS` as
`ralm train` does and writes what TensorBoard was given. It uses nothing of the package but
`ralm_jax.cli.main` and what gin files name (models, TextConfig, macros), so that it runs with
the code of other days, too:

  cd /tmp && PYTHONPATH=OTHER_CHECKOUT python CHECKOUT/tests/runs/recorded_runs.py OUTPUT.json

`losses_of_before.json` was written so; see `test_losses_of_before.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import importlib.metadata
import io
import json
import os
import pathlib
import random
import re
import string
import sys
import tempfile
import time
from typing import Any

STEPS = 3
# Less optimised code compiles in half the time.
ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'XLA_FLAGS': '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0',
  'TF_CPP_MIN_LOG_LEVEL': '3',
  'OMP_WAIT_POLICY': 'PASSIVE',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}
VERSIONS_OF = ('jax', 'jaxlib', 'numpy', 'flax', 'optax', 'tensorflow', 'seqio')
# Of what is reported: times, and what depends on them.
_TIMES = re.compile('timing/|second|wait|share|/time')
T5 = """
from __gin__ import dynamic_registration
from ralm_jax.models import bert
from ralm_jax.models import t5
include 'gin_configs/models/tiny.gin'
DROPOUT_RATE = 0.0
t5.T5Config:
  vocab_size = 256
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  mlp_dim = 32
  num_encoder_layers = 1
  num_decoder_layers = 1
"""
BART = """
from __gin__ import dynamic_registration
from ralm_jax.models import bart
from ralm_jax.models import bert
include 'gin_configs/models/bart_dpr.gin'
DTYPE = 'float32'
DROPOUT_RATE = 0.0
bart.BartConfig:
  vocab_size = 400
  emb_dim = 16
  num_heads = 2
  num_encoder_layers = 1
  num_decoder_layers = 1
  encoder_mlp_dim = 32
  decoder_mlp_dim = 32
  max_positions = 96
  embedding_init_stddev = 0.3
"""
BERT = """
bert.BertConfig:
  vocab_size = 128
  emb_dim = 16
  num_heads = 2
  num_layers = 1
  mlp_dim = 32
  max_positions = 64
  embedding_init_stddev = 0.5
"""
LENGTHS = """
from __gin__ import dynamic_registration
from ralm_jax.data import text_config
text_config.TextConfig:
  query_length = 60
  reader_query_length = 48
"""
MODELS = {'t5': T5 + BERT, 'bart': BART + BERT}
TRAIN = 'gin_configs/runs/train.gin'
RAG = 'gin_configs/runs/rag.gin'
MULTIPLE_CHOICE = 'gin_configs/runs/multiple_choice.gin'
RELEASED = 'gin_configs/recipes/atlas_released.gin'
FILES = {
  'corpus': 'CORPUS',
  'index': 'INDEX',
  'questions': 'TRAIN_QUESTIONS',
  'reader_vocabulary': 'READER_VOCABULARY',
  'retriever_vocabulary': 'RETRIEVER_VOCABULARY',
}
# Short, and a learning rate that shows in three steps.
MACROS = {
  'TRAIN_STEPS': STEPS,
  'CHECKPOINT_PERIOD': STEPS,
  'STATS_PERIOD': 1,
  'WARMUP_STEPS': 1,
  'LEARNING_RATE': 1e-2,
  'RETRIEVER_LEARNING_RATE': 1e-2,
  'BATCH_SIZE': 8,
  'N_PASSAGES': 3,
  'PASSAGE_LENGTH': 80,
  'RETRIEVER_PASSAGE_LENGTH': 64,
  'TARGET_LENGTH': 8,
}
EVALUATION = {'EVAL_PERIOD': STEPS, 'EVAL_NUM_EXAMPLES': 12, 'EVAL_BATCH_SIZE': 8}
DROPOUT = {'DROPOUT_RATE': 0.1}
PRETEXT = {
  'TRAIN_QUESTIONS': None,
  'MIN_WORDS': 3,
  'QUERY_LENGTH': 60,
  'READER_QUERY_LENGTH': 48,
  'TARGET_LENGTH': 24,
}
WARM_START = {
  'WARM_START_STEPS': STEPS,
  'WARM_START_BATCH_SIZE': 16,
  'RANDOM_SEED': 0,
  **{name: MACROS[name] for name in ('N_PASSAGES', 'PASSAGE_LENGTH', 'TARGET_LENGTH')},
  'RETRIEVER_PASSAGE_LENGTH': 64,
  'CHECKPOINT_PERIOD': STEPS,
}


@dataclasses.dataclass(frozen=True)
class Configuration:
  """One run.

  Attributes:
    macros: beside `MACROS`.
    files: gin files after the model's.
    model: one of `MODELS`.
    alternatives: bindings of which the first that parses is taken, where the name of a
      setting may change though its meaning does not.
    command: 'train' or 'warm_start'.
    start: the configuration whose checkpoint it begins with.
    questions: 'questions' or 'choices'.
    corpus: None for that of the model.
  """

  macros: dict[str, Any] = dataclasses.field(default_factory=dict)
  files: tuple[str, ...] = (TRAIN,)
  model: str = 't5'
  alternatives: tuple[str, ...] = ()
  command: str = 'train'
  start: str | None = None
  questions: str = 'questions'
  corpus: str | None = None


def _of_retrieval(name: str, **macros: Any) -> Configuration:
  return Configuration(macros, (TRAIN, f'gin_configs/retrieval/{name}.gin'))


def _pretext(name: str, **macros: Any) -> Configuration:
  return Configuration({**PRETEXT, **macros}, (f'gin_configs/runs/{name}.gin',))


def _rag(model: str, reading: str, query_side: str | None, **macros: Any) -> Configuration:
  if model == 't5':
    macros = {'TIED_RETRIEVER': query_side is None, **macros}
  return Configuration(
    {'READING': reading, 'QUERY_SIDE': query_side, **macros}, (TRAIN, RAG), model
  )


CONFIGURATIONS = {
  # What teaches the retriever. Dropout is on where the random state may be split otherwise.
  'perplexity': Configuration({**EVALUATION, **DROPOUT}),
  'perplexity_shared_encoder': Configuration({'GOLD_ENCODER': 'shared', **DROPOUT}),
  'attention': Configuration({'GOLD_SCORE': 'attention', **DROPOUT}),
  'leave_one_out': Configuration({'GOLD_SCORE': 'leave_one_out'}),
  'emdr2': Configuration({'GOLD_SCORE': 'emdr2'}),
  'no_gold_score': _of_retrieval('fixed', GOLD_SCORE='none'),
  'released_perplexity': Configuration(
    {'COMPARED_GOLD_SCORES': "('attention', 'leave_one_out', 'emdr2')"}, (TRAIN, RELEASED)
  ),
  'released_attention': Configuration({'GOLD_SCORE': 'attention'}, (TRAIN, RELEASED)),
  'released_emdr2': Configuration({'GOLD_SCORE': 'emdr2'}, (TRAIN, RELEASED)),
  # Which towers learn.
  'query_side_stored': _of_retrieval('query_side'),
  'query_side_frozen': _of_retrieval('query_side', QUERY_SIDE='frozen'),
  'query_side_released': Configuration({'QUERY_SIDE': 'released'}),
  'two_towers': Configuration(
    {'TIED_RETRIEVER': False, 'POOLING': 'cls', 'NORMALIZE_EMBEDDINGS': True, 'SCALE_SCORES': False}
  ),
  'freeze_retriever_steps': Configuration({'FREEZE_RETRIEVER_STEPS': 2}),
  # Readings and readers.
  'closed_book': Configuration(
    {'CORPUS': None, 'INDEX': None}, (TRAIN, 'gin_configs/runs/closed_book.gin')
  ),
  'bart_fusion': _rag('bart', 'fusion', None, GOLD_SCORE='attention', TIED_RETRIEVER=True),
  'bart_rag_token_stored': _rag('bart', 'rag_token', 'stored', **DROPOUT),
  'bart_rag_sequence_frozen': _rag('bart', 'rag_sequence', 'frozen', **EVALUATION),
  't5_rag_token': _rag('t5', 'rag_token', None),
  't5_rag_sequence_stored': _rag('t5', 'rag_sequence', 'stored'),
  # The step and the mesh.
  'two_microbatches': Configuration({'NUM_MICROBATCHES': 2, **DROPOUT}),
  'global_clip_norm': Configuration(
    alternatives=(
      'train.global_clip_norm = 0.05',
      'StepOptions.global_clip_norm = 0.05',
      'GLOBAL_CLIP_NORM = 0.05',
    )
  ),
  'strict_order_in_bfloat16': Configuration({'RETRIEVAL_LOOKAHEAD': 0, 'DTYPE': 'bfloat16'}),
  'scan_and_remat': Configuration(
    {
      'SCAN_LAYERS': True,
      'REMAT_POLICY': 'full',
      'GOLD_SCORE': 'attention',
      't5.T5Config.num_encoder_layers': 2,
      't5.T5Config.num_decoder_layers': 2,
      **DROPOUT,
    }
  ),
  'two_by_four': Configuration(
    {
      'NUM_PARTITIONS': 2,
      'PARAMETER_PARTITIONING_DIMS': 2,
      'RANDOM_SEED': 7,
      'SEARCH_FILTER': 'none',
      'REMAT_POLICY': 'dots',
    }
  ),
  # The index.
  'rerank': _of_retrieval('rerank', N_CANDIDATES=6),
  'full_refresh': _of_retrieval('full_refresh', REFRESH_INDEX=1),
  'device': _of_retrieval('device', N_CANDIDATES=6, REFRESH_INDEX=2, NUM_MICROBATCHES=2),
  # What is learned.
  'masked_spans': _pretext('masked_spans'),
  'prefix_lm': _pretext('prefix_lm'),
  'title_section': _pretext('title_section', TARGET_LENGTH=40),
  'salient_spans': dataclasses.replace(_pretext('salient_spans'), corpus='dated_corpus'),
  'few_shot': Configuration({'SHOTS': 12}, (TRAIN, 'gin_configs/runs/few_shot.gin')),
  'multiple_choice': Configuration(
    {**EVALUATION, 'PASSAGE_LENGTH': 120, 'text_config.TextConfig.reader_query_length': 72},
    (TRAIN, MULTIPLE_CHOICE),
    questions='choices',
  ),
  # The retriever's warm start, and a run that begins with it.
  'warm_start': Configuration(
    {**WARM_START, 'READER_INIT': 'copying'},
    ('gin_configs/runs/warm_start.gin',),
    command='warm_start',
  ),
  'two_towers_from_warm_start': dataclasses.replace(
    _of_retrieval('query_side'), start='warm_start'
  ),
}


@dataclasses.dataclass(frozen=True)
class World:
  """What all runs read: vocabularies, questions, and a corpus a reader."""

  folder: pathlib.Path

  def path(self, name: str) -> str:
    return str(self.folder / name)

  def of(self, configuration: Configuration) -> dict[str, str]:
    model = configuration.model
    return {
      'corpus': self.path(configuration.corpus or f'{model}_corpus'),
      'questions': self.path(f'{configuration.questions}.jsonl'),
      'reader_vocabulary': self.path('tokenizer.json' if model == 'bart' else 'reader.model'),
      'retriever_vocabulary': self.path('vocab.txt'),
    }


def write_texts(folder: pathlib.Path) -> None:
  """Writes passages, questions, vocabularies and gin files."""
  import sentencepiece
  import tokenizers

  from tests import tiny

  kinds = ('city', 'river', 'mountain', 'island', 'lake')
  passages = [{**row, 'section': f'The {kinds[i % 5]}'} for i, row in enumerate(tiny.passages())]
  colours = sorted({question['answers'][0] for question in tiny.questions()})
  choices = []
  for i, question in enumerate(tiny.questions()):
    right = colours.index(question['answers'][0])
    options = [colours[(right + j) % len(colours)] for j in range(4)]
    random.Random(i).shuffle(options)
    choices.append(
      {
        'id': question['id'],
        'question': question['question'],
        'options': options,
        'answers': ['ABCD'[options.index(colours[right])]],
        'group': 'rivers' if i % 2 else 'lakes',
      }
    )
  for name, rows in (('passages', passages), ('questions', tiny.questions()), ('choices', choices)):
    tiny.write_jsonl(folder / f'{name}.jsonl', rows)
  texts = [f'{row["title"]}: {row["text"]}' for row in passages] + [
    question['question'] for question in tiny.questions()
  ]
  # In place of all of Unicode's, for a model of a few kilobytes.
  rules = folder / 'rules.tsv'
  rules.write_text('A\t20\n9\t20\n')
  content = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(
      [*texts, 'question: title: context: answer: it is', 'options: (A) (B) (C) (D) A B C D']
    ),
    model_writer=content,
    vocab_size=156,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    hard_vocab_limit=False,
    normalization_rule_tsv=str(rules),
    minloglevel=2,
    num_threads=1,
  )
  (folder / 'reader.model').write_bytes(content.getvalue())
  rules.unlink()
  tokenizer = tokenizers.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(
    [text.replace(': ', ' / ', 1) + ' //' for text in texts],
    vocab_size=400,
    show_progress=False,
    special_tokens=['<s>', '<pad>', '</s>', '<unk>', '<mask>'],
  )
  tokenizer.save(str(folder / 'tokenizer.json'))
  letters = string.ascii_lowercase + string.digits
  pieces = [
    '[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *letters, *(f'##{x}' for x in letters),
    *string.punctuation, 'the', 'colour', 'of', 'is', *kinds, *colours,
  ]  # fmt: skip
  (folder / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  for model, text in MODELS.items():
    (folder / f'{model}.gin').write_text(text)
  (folder / 'lengths.gin').write_text(LENGTHS)


def make_world(folder: pathlib.Path) -> World:
  """Writes the texts, and the corpora with `ralm corpus`."""
  write_texts(folder)
  world = World(folder)
  # Salient spans are names, dates and numbers.
  rows = [json.loads(line) for line in (folder / 'passages.jsonl').read_text().splitlines()]
  with open(folder / 'dated.jsonl', 'w') as file:
    for i, row in enumerate(rows):
      row['text'] += f' It is of {1800 + i}.'
      file.write(json.dumps(row) + '\n')
  for model, vocabulary, passages in (
    ('t5', 'reader.model', 'passages'),
    ('bart', 'tokenizer.json', 'passages'),
    ('dated', 'reader.model', 'dated'),
  ):
    _command(
      'corpus',
      '--input', world.path(f'{passages}.jsonl'),
      '--output', world.path(f'{model}_corpus'),
      '--reader_vocabulary', world.path(vocabulary),
      '--retriever_vocabulary', world.path('vocab.txt'),
      '--workers', '1',
    )  # fmt: skip
  return world


def _command(*arguments: str) -> None:
  from ralm_jax import cli

  status = cli.main(arguments)
  if status:
    raise RuntimeError(f'`ralm {" ".join(arguments)}` ends with status {status}.')


def arguments_of(name: str, world: World) -> list[str]:
  """The command line of a configuration."""
  configuration = CONFIGURATIONS[name]
  pretext = 'QUERY_LENGTH' in configuration.macros
  files = [world.path(f'{configuration.model}.gin'), *configuration.files]
  if not pretext:
    files.append(world.path('lengths.gin'))
  macros = dict(MACROS)
  if configuration.command == 'warm_start':
    macros = {}
  for key, value in world.of(configuration).items():
    macros[FILES[key]] = value
  macros['MODEL_DIR'] = world.path(f'runs/{name}')
  macros['INDEX'] = world.path(f'indexes/{name}')
  if 'EVAL_PERIOD' in configuration.macros:
    macros['EVAL_QUESTIONS'] = macros['TRAIN_QUESTIONS']
  if configuration.start:
    macros['INITIAL_CHECKPOINT_PATH'] = world.path(f'runs/{configuration.start}')
  macros.update(configuration.macros)
  if configuration.command == 'warm_start':
    allowed = {*WARM_START, 'MODEL_DIR', 'CORPUS', 'READER_INIT'}
    macros = {key: value for key, value in macros.items() if key in allowed}
  return [
    configuration.command,
    *(f'--gin_file={file}' for file in files),
    *(f'--gin.{key}={value}' for key, value in macros.items()),
  ]


def _parses(arguments: list[str]) -> bool:
  from ralm_jax import cli

  with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    return cli.main([*arguments, '--dry_run']) == 0


def run(name: str, world: World) -> dict[str, Any]:
  """Trains; returns what was reported at each step, and the norms of the parameters."""
  import gin

  configuration = CONFIGURATIONS[name]
  arguments = arguments_of(name, world)
  for alternative in configuration.alternatives:
    if _parses([*arguments, f'--gin_bindings={alternative}']):
      arguments.append(f'--gin_bindings={alternative}')
      break
  else:
    if configuration.alternatives:
      raise ValueError(f'None of {configuration.alternatives} is a setting.')
  try:
    _command(*arguments)
  finally:
    with gin.unlock_config():
      gin.clear_config()
  return result_of(world.path(f'runs/{name}'), STEPS)


def result_of(run_folder: str, step: int, from_step: int = 0) -> dict[str, Any]:
  """What was reported after a step, and the norms of the parameters at another."""
  return {**_scalars(run_folder, from_step), 'parameters': _norms(run_folder, step)}


def _scalars(run_folder: str, from_step: int) -> dict[str, list[float]]:
  """Of TensorBoard's files: the values of each name in the order of the steps."""
  import tensorflow as tf

  found: dict[str, dict[int, float]] = {}
  for path in sorted(glob.glob(os.path.join(run_folder, 'train', 'events*'))):
    for event in tf.compat.v1.train.summary_iterator(path):
      for value in event.summary.value:
        if event.step > from_step and not _TIMES.search(value.tag):
          number = float(tf.make_ndarray(value.tensor))
          found.setdefault(value.tag, {})[event.step] = _digits(number)
  return {name: [values[step] for step in sorted(values)] for name, values in sorted(found.items())}


def _norms(run_folder: str, step: int) -> dict[str, float]:
  """The norm of each module's parameters in a checkpoint."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  path = os.path.abspath(os.path.join(run_folder, f'checkpoint_{step}', 'state'))
  with ocp.PyTreeCheckpointer() as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree
    state = checkpointer.restore(
      path, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    )
  return {
    module: _digits(
      sum(float(np.sum(np.square(x, dtype=np.float64))) for x in jax.tree.leaves(params)) ** 0.5
    )
    for module, params in state['params'].items()
  }


def _digits(number: float) -> float:
  """Of nine digits, which tell all float32 numbers apart."""
  return float(f'{number:.9g}')


def run_all(names: list[str], folder: pathlib.Path, output: pathlib.Path) -> dict[str, Any]:
  """Runs configurations one after another; an error of one is its result."""
  world = make_world(folder)
  runs: dict[str, Any] = {}
  result = {'versions': {x: importlib.metadata.version(x) for x in VERSIONS_OF}, 'runs': runs}
  for name in _with_starts(names):
    begin = time.monotonic()
    try:
      runs[name] = run(name, world)
    except Exception as error:  # shown with the configuration's name by its test
      runs[name] = {'error': repr(error)}
    print(f'{name}: {time.monotonic() - begin:.1f} s', file=sys.stderr, flush=True)
    output.write_text(json.dumps(result))
  return result


def _with_starts(names: list[str]) -> list[str]:
  ordered: list[str] = []
  for name in names:
    start = CONFIGURATIONS[name].start
    ordered += [x for x in (start, name) if x and x not in ordered]
  return ordered


def main(output: str, *names: str) -> None:
  output_path = pathlib.Path(output).absolute()
  with tempfile.TemporaryDirectory(prefix='recorded-') as folder:
    os.chdir(folder)
    run_all(list(names or CONFIGURATIONS), pathlib.Path(folder), output_path)


if __name__ == '__main__':
  os.environ.update(ENVIRONMENT)
  # Last, so that `ralm_jax` may be that of another checkout.
  sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))
  sys.path.remove(str(pathlib.Path(__file__).resolve().parent))
  main(*sys.argv[1:])
