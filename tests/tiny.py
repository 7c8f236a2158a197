"""A corpus of a few dozen passages, questions on it, and a model to train.

Shared by the end-to-end tests. `python -m tests.tiny FILE.json` trains in a process
of its own, so that a test can kill it; see `main`.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import glob
import io
import json
import logging
import os
import pathlib
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
import traceback
import types
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
COUNT = 40
_FIRST = ('Al', 'Bo', 'Cy', 'Du', 'Ez', 'Fa', 'Go', 'Hu')
_SECOND = ('mar', 'nel', 'pol', 'rin', 'tas')
_KINDS = ('city', 'river', 'mountain', 'island', 'lake')
_COLOURS = ('red', 'green', 'blue', 'white', 'black', 'golden', 'silver')


def names() -> list[str]:
  """Forty invented names."""
  return [first + second for first in _FIRST for second in _SECOND]


def passages() -> list[dict[str, str]]:
  """Objects in Atlas's layout."""
  rows = []
  for i, name in enumerate(names()):
    kind, colour = _KINDS[i % 5], _COLOURS[i % 7]
    rows.append(
      {
        'id': f'p{i}',
        'title': name,
        'text': f'{name} is a {kind} in the north. The colour of {name} is '
        f'{colour} as every visitor of the {kind} remembers.',
      }
    )
  return rows


def questions() -> list[dict[str, Any]]:
  """Objects of a question file; half of them have two answers."""
  return [
    {
      'id': f'q{i}',
      'question': f'what is the colour of {name}?',
      'answers': [_COLOURS[i % 7]] + ([f'it is {_COLOURS[i % 7]}'] if i % 2 else []),
      'gold_passage_id': f'p{i}',
    }
    for i, name in enumerate(names())
  ]


def write_jsonl(path: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


@dataclasses.dataclass(frozen=True)
class Data:
  """Files on disk.

  Attributes:
    folder: holds them all.
  """

  folder: pathlib.Path

  @property
  def passages(self) -> pathlib.Path:
    return self.folder / 'passages.jsonl'

  @property
  def questions(self) -> pathlib.Path:
    return self.folder / 'questions.jsonl'

  @property
  def reader_vocabulary(self) -> pathlib.Path:
    return self.folder / 'reader.model'

  @property
  def retriever_vocabulary(self) -> pathlib.Path:
    return self.folder / 'vocab.txt'

  @property
  def corpus(self) -> pathlib.Path:
    return self.folder / 'corpus'


def make_data(folder: pathlib.Path) -> Data:
  """Writes passages, questions, both vocabularies and the corpus."""
  import sentencepiece

  from ralm_jax.data.corpus import passage_store as corpus_lib

  data = Data(folder)
  write_jsonl(data.passages, passages())
  write_jsonl(data.questions, questions())
  texts = (
    [f'{p["title"]}: {p["text"]}' for p in passages()]
    + [q['question'] for q in questions()]
    + ['question: title: context: answer: it is']
  )
  content = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts),
    model_writer=content,
    vocab_size=150,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  data.reader_vocabulary.write_bytes(content.getvalue())
  letters = string.ascii_lowercase + string.digits
  pieces = [
    '[PAD]',
    '[UNK]',
    '[CLS]',
    '[SEP]',
    '[MASK]',
    *letters,
    *(f'##{letter}' for letter in letters),
    *string.punctuation,
    'the',
    'colour',
    'of',
    'is',
    *_KINDS,
    *_COLOURS,
  ]
  data.retriever_vocabulary.write_text('\n'.join(pieces) + '\n')
  corpus_lib.build_corpus(
    data.passages,
    data.corpus,
    data.reader_vocabulary,
    data.retriever_vocabulary,
    n_workers=1,
    progress=False,
  )
  return data


def make_text(**changes: Any) -> Any:
  """A TextConfig of short sequences."""
  from ralm_jax.data import text_config

  return text_config.TextConfig(
    **{
      'question_format': '{question}',
      'target_format': '<extra_id_0> {answer}',
      'query_length': 40,
      'reader_query_length': 24,
      'passage_length': 80,
      'retriever_passage_length': 64,
      'target_length': 8,
      'n_passages': 3,
      **changes,
    }
  )


def make_model(
  reader: dict[str, Any] | None = None, retriever: dict[str, Any] | None = None, **changes: Any
) -> Any:
  """A RetrievalLM with dropout, so that the random state matters; `changes` are of its fields."""
  from ralm_jax.models import bert, retrieval_lm, t5

  fields = dict(
    reader_config=t5.T5Config(
      **{
        'vocab_size': 256,
        'emb_dim': 16,
        'num_heads': 2,
        'head_dim': 8,
        'mlp_dim': 32,
        'num_encoder_layers': 1,
        'num_decoder_layers': 1,
        'dropout_rate': 0.1,
        **(reader or {}),
      }
    ),
    retriever_config=bert.BertConfig(
      **{
        'vocab_size': 128,
        'emb_dim': 16,
        'num_heads': 2,
        'num_layers': 1,
        'mlp_dim': 32,
        'max_positions': 64,
        'embedding_init_stddev': 0.5,
        'dropout_rate': 0.1,
        **(retriever or {}),
      }
    ),
    gold_encoder='shared',
  )
  return retrieval_lm.RetrievalLM(**fields | changes)


def train(data: Data, model_dir: pathlib.Path | str, /, *, steps: int = 4, **options: Any) -> Any:
  """`runs.training.train` with small defaults; returns the final state.

  Args:
    data: of `make_data`.
    model_dir: of the run.
    steps: total steps.
    **options: `model`, `text`, `retrieval`, `checkpoint`, `evaluation` and
      `dataset` are dicts of changes to the defaults; `questions` is a file,
      `closed_book` a bool, `devices` a number, `initial_checkpoint_path` a
      folder; fields of StepOptions go there, all others to `training.train`.
  """
  import jax

  from ralm_jax.data import pipeline
  from ralm_jax.runs import training
  from ralm_jax.tasks import qa
  from ralm_jax.training import optimizers, partitioning

  text = make_text(**options.pop('text', {}))
  closed_book = options.pop('closed_book', False)
  if closed_book:
    text = dataclasses.replace(text, reader_format='{query}')
  task = qa.jsonl_task(
    'tiny_qa',
    train=str(options.pop('questions', data.questions)),
    text=text,
    reader_vocabulary=str(data.reader_vocabulary),
    retriever_vocabulary=str(data.retriever_vocabulary),
  )
  retrieval = {
    'corpus': str(data.corpus),
    'index': str(data.folder / 'index'),
    'retry_for_s': 60.0,
    'embed_batch_size': 16,
    **options.pop('retrieval', {}),
  }
  if retrieval.get('address'):
    retrieval['index'] = None
  devices = options.pop('devices', 1)

  def taken(options_class: Any) -> Any:
    names = [field.name for field in dataclasses.fields(options_class)]
    return options_class(**{name: options.pop(name) for name in names if name in options})

  return training.train(
    **{
      'model': make_model(**options.pop('model', {})),
      'text': text,
      'model_dir': str(model_dir),
      'total_steps': steps,
      'data': pipeline.DatasetConfig(
        task,
        **{'batch_size': 4, 'seed': options.get('random_seed', 0), **options.pop('dataset', {})},
      ),
      'vocabularies': training.Vocabularies(
        str(data.reader_vocabulary), str(data.retriever_vocabulary)
      ),
      'optimizers': {
        'reader': options.pop('reader_optimizer', optimizers.adamw(1e-2)),
        'retriever': options.pop(
          'retriever_optimizer', None if closed_book else optimizers.adamw(1e-2)
        ),
      },
      'retrieval': None if closed_book else training.RetrievalConfig(**retrieval),
      'start': training.StartingPoint(
        options.pop('initial_checkpoint_path', None), options.pop('initial_params', None)
      ),
      'step': taken(training.StepOptions),
      'evaluation': training.TrainingEvaluation(**options.pop('evaluation', {})),
      'checkpoints': training.CheckpointConfig(**{'period': 2, **options.pop('checkpoint', {})}),
      'partitioner': partitioning.Partitioner(devices=jax.devices()[:devices] if devices else None),
      'stats_period': 1,
      **options,
    }
  )


def arrays(state: Any) -> dict[str, Any]:
  """Every array of a state, by its path."""
  import jax
  import numpy as np

  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


def differing(first: Any, second: Any) -> list[str]:
  """Paths at which two states are not the same bit for bit."""
  one, other = arrays(first), arrays(second)
  if one.keys() != other.keys():
    return sorted(one.keys() ^ other.keys())
  return [
    name
    for name in one
    if one[name].dtype != other[name].dtype or one[name].tobytes() != other[name].tobytes()
  ]


def load_checkpoint(model_dir: pathlib.Path | str, step: int) -> Any:
  """The state of a checkpoint as nested dicts of host arrays."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  path = os.path.join(model_dir, f'checkpoint_{step}', 'state')
  with ocp.PyTreeCheckpointer() as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree
    return checkpointer.restore(
      path, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    )


def environment(devices: int = 8) -> dict[str, str]:
  """Of a process that imports this file, with so many CPU devices."""
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    # Less optimised code compiles in half the time.
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} '
    '--xla_backend_optimization_level=0',
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'OMP_WAIT_POLICY': 'PASSIVE',
    'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
  }


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(('localhost', 0))
    return listener.getsockname()[1]


@dataclasses.dataclass(frozen=True)
class Process:
  """A started `python -m tests.tiny`.

  Attributes:
    popen: the process.
    log: its output.
  """

  popen: subprocess.Popen
  log: pathlib.Path

  def output(self) -> str:
    return self.log.read_text(errors='replace')

  def finish(self, status: int = 0, timeout_s: float = 240.0) -> str:
    """Waits; returns the output, which a wrong exit status shows."""
    try:
      found = self.popen.wait(timeout_s)
    except subprocess.TimeoutExpired:
      self.popen.kill()
      self.popen.wait()
      raise AssertionError(f'hangs; its output:\n{self.output()}') from None
    assert found == status, f'status {found}; its output:\n{self.output()}'
    return self.output()


def start(log: pathlib.Path, jobs: list[dict[str, Any]], devices: int = 8) -> Process:
  """Starts `python -m tests.tiny` on jobs; see `main`."""
  path = log.with_suffix('.json')
  path.write_text(json.dumps(jobs))
  with open(log, 'wb') as file:
    return Process(
      subprocess.Popen(
        [sys.executable, '-m', 'tests.tiny', str(path)],
        env=environment(devices),
        stdout=file,
        stderr=file,
      ),
      log,
    )


@dataclasses.dataclass(frozen=True)
class Trained:
  """A run of four steps with its index.

  Attributes:
    data: what it was trained on.
    run: MODEL_DIR, with checkpoints 2 and 4.
  """

  data: Data
  run: pathlib.Path

  @property
  def index(self) -> pathlib.Path:
    return self.data.folder / 'index'


@functools.cache
def trained() -> Trained:
  """Trained once for all tests of a session; not to be changed."""
  folder = pathlib.Path(tempfile.mkdtemp(prefix='tiny-'))
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  data = make_data(folder)
  start(
    folder / 'log', [{'data': str(folder), 'model_dir': str(folder / 'run'), 'steps': 4}]
  ).finish()
  return Trained(data, folder / 'run')


def main(path: str) -> int:
  """Trains as a JSON file says; each job in a fork that has imported all.

  The file is a list of jobs. `data` and `model_dir` are folders; `process` may hold the
  arguments of `jax.distributed.initialize`; `kills` is a list of moments at which the run
  is killed, to be started again; `pauses` a folder, see `pause_in_refreshes`; all else
  goes to `train`. Returns the last job's exit status.
  """
  with open(path, encoding='utf-8') as file:
    jobs = json.load(file)
  logging.basicConfig(level=logging.INFO, stream=sys.stderr)
  import_all()
  _let_threads_rest()
  status = 1
  for job in jobs:
    for moment in job.pop('kills', []):
      child = _fork(job)
      _wait_for(child, moment)
      os.kill(child, signal.SIGKILL)
      _, status = os.waitpid(child, 0)
      left = sorted(glob.glob(os.path.join(job['model_dir'], 'checkpoint_*')))
      print(
        'KILLED' if os.WIFSIGNALED(status) else 'ENDED BEFORE',
        moment,
        'leaving',
        *map(os.path.basename, left),
        flush=True,
      )
    _, status = os.waitpid(_fork(job), 0)
    status = os.waitstatus_to_exitcode(status)
    if status:
      break
  return status


def _let_threads_rest() -> None:
  """Waits until the threads that imports have started all sleep.

  A lock that one of them holds when the process forks is never released in the
  child: TensorFlow's, of thread names, is held while a thread starts.
  """
  quiet = 0
  for _ in range(200):
    states = []
    for path in glob.glob('/proc/self/task/*/stat'):
      with contextlib.suppress(OSError), open(path, encoding='utf-8') as file:
        states.append(file.read().rpartition(')')[2].split()[0])
    # This thread is the one that runs.
    quiet = quiet + 1 if states.count('S') >= len(states) - 1 else 0
    if quiet == 3:
      return
    time.sleep(0.02)


def _fork(job: dict[str, Any]) -> int:
  child = os.fork()
  if child:
    return child
  status = 1
  try:
    status = _run(dict(job))
  except BaseException:
    traceback.print_exc()
    raise
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # pylint: disable=protected-access


def _wait_for(child: int, moment: dict[str, Any]) -> None:
  """Waits for a file that matches `glob`, then for `delay` seconds."""
  if 'glob' in moment:
    while not glob.glob(moment['glob']):
      # A child that has ended stays until it is waited for.
      if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        return
      time.sleep(0.001)
  time.sleep(moment.get('delay', 0.0))


def _run(job: dict[str, Any]) -> int:
  """One job, as `ralm` runs a command."""
  import jax

  from ralm_jax import cli

  def run(argv: list[str], prog: str) -> None:
    del argv, prog
    if 'pauses' in job:
      pause_in_refreshes(pathlib.Path(job.pop('pauses')))
    if 'process' in job:
      jax.distributed.initialize(**job.pop('process'))
    train(Data(pathlib.Path(job.pop('data'))), job.pop('model_dir'), **job)

  sys.modules['tiny_job'] = types.SimpleNamespace(main=run)
  cli.COMMANDS['job'] = ('tiny_job', '')
  try:
    return cli.main(['job'])
  finally:
    atexit._run_exitfuncs()  # a fork that ends by os._exit runs none


def pause_in_refreshes(folder: pathlib.Path) -> None:
  """Leaves files that say how far a refresh is, and pauses at each.

  `embedding_<step>` when a part of the corpus is embedded, `uploading_<step>`
  when a part is sent, `acknowledged_<step>` when the generation is served. Only
  the first time: a file that is there is passed by.
  """
  from ralm_jax.retrieval import embedding, publisher as refresh
  from retrieval_service import client as client_lib

  folder.mkdir(exist_ok=True)
  at: list[int] = []

  def pause(name: str) -> None:
    path = folder / f'{name}_{at[-1]}'
    if not path.exists():
      path.touch()
      time.sleep(2.0)

  publish = refresh.IndexPublisher.publish
  embed = embedding.PassageEmbedder.embed
  build = client_lib.RetrievalClient.build

  def publish_at(self, params, key, **description):
    at.append(description['step'])
    try:
      return publish(self, params, key, **description)
    finally:
      at.pop()

  def embed_and_pause(self, params, rows):
    result = embed(self, params, rows)
    if at:
      pause('embedding')
    return result

  def build_and_pause(self, chunks, **options):
    def sent():
      for chunk in chunks:
        yield chunk
        pause('uploading')

    number = build(self, sent(), **options)
    pause('acknowledged')
    return number

  refresh.IndexPublisher.publish = publish_at
  embedding.PassageEmbedder.embed = embed_and_pause
  client_lib.RetrievalClient.build = build_and_pause


def import_all() -> None:
  """Imports what training needs, before a process forks."""
  from clu import metric_writers as _  # noqa: F401

  from ralm_jax.data import pipeline as _  # noqa: F401,F811
  from ralm_jax.runs import training as _  # noqa: F401,F811
  from ralm_jax.tasks import qa as _  # noqa: F401,F811


if __name__ == '__main__':
  sys.exit(main(sys.argv[1]))
