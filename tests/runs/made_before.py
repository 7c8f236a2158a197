"""A corpus, indexes, checkpoints and an evaluation job as an earlier version wrote them.

`python made_before.py make FOLDER` writes them, `python made_before.py use FOLDER OUTPUT.json`
opens, evaluates, resumes and edits what lies in the folder, which it changes, and writes what
came out. Both use `ralm_jax.cli.main` alone, with paths relative to the folder, so that they run
with the code of other days, too (see `recorded_runs.py`). The fixture is

  cd /tmp && export PYTHONPATH=EARLIER_CHECKOUT
  python CHECKOUT/tests/runs/made_before.py make made_before
  tar -cJf CHECKOUT/tests/fixtures/made_before/artefacts.tar.xz -C made_before .
  python CHECKOUT/tests/runs/made_before.py use made_before \\
    CHECKOUT/tests/fixtures/made_before/expected.json
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import pathlib
import re
import sys
from typing import Any

_ROOT = pathlib.Path(__file__).resolve().parents[2]
if __name__ == '__main__':
  # Last, so that `ralm_jax` may be that of another checkout.
  sys.path.append(str(_ROOT))
  sys.path.remove(str(pathlib.Path(__file__).resolve().parent))

from tests.runs import recorded_runs  # noqa: E402

STEPS = 2
MODEL = """
from __gin__ import dynamic_registration
from ralm_jax.data import text_config
from ralm_jax.models import bert
from ralm_jax.models import t5
include 'gin_configs/models/tiny.gin'
include 'gin_configs/runs/train.gin'
CORPUS = 'corpus'
TRAIN_QUESTIONS = 'questions.jsonl'
READER_VOCABULARY = 'reader.model'
RETRIEVER_VOCABULARY = 'vocab.txt'
TRAIN_STEPS = 2
CHECKPOINT_PERIOD = 2
STATS_PERIOD = 1
WARMUP_STEPS = 1
LEARNING_RATE = 1e-2
RETRIEVER_LEARNING_RATE = 1e-2
BATCH_SIZE = 8
N_PASSAGES = 3
PASSAGE_LENGTH = 80
RETRIEVER_PASSAGE_LENGTH = 64
TARGET_LENGTH = 8
text_config.TextConfig:
  query_length = 60
  reader_query_length = 48
t5.T5Config:
  vocab_size = 256
  emb_dim = 8
  num_heads = 2
  head_dim = 4
  mlp_dim = 8
  num_encoder_layers = 1
  num_decoder_layers = 1
bert.BertConfig:
  vocab_size = 128
  emb_dim = 8
  num_heads = 2
  num_layers = 1
  mlp_dim = 8
  max_positions = 64
  embedding_init_stddev = 0.5
"""
JOB = """
from __gin__ import dynamic_registration
from ralm_jax import jobs
include 'gin_configs/runs/evaluation.gin'
OUTPUT = 'job'
CHECKPOINTS = '*/checkpoint_2'
INDEXES = 'flat'
EVAL_BATCH_SIZE = 8
TASKS = [@answers/jobs.Task(), @passages/jobs.Task()]
answers/jobs.Task:
  name = 'answers'
  questions = 'few_questions.jsonl'
passages/jobs.Task:
  name = 'passages'
  questions = 'few_questions.jsonl'
  retrieve_only = True
"""
# MODEL_DIR to what its run is given; each has an index of its own.
RUNS = {
  'tied': ('--gin.INDEX=flat', '--gin.REFRESH_INDEX=2'),
  'two_towers': (
    '--gin_file=gin_configs/retrieval/query_side.gin',
    '--gin.INDEX=towers',
    '--gin.GOLD_SCORE=attention',
  ),
}
EDITED = '--index=pq'
QUESTION = 'what is the colour of Almar?'


def _command(*arguments: str) -> str:
  """Runs `ralm`; returns what it prints."""
  import gin

  from ralm_jax import cli

  with contextlib.redirect_stdout(io.StringIO()) as shown:
    try:
      status = cli.main(arguments)
    finally:
      with gin.unlock_config():
        gin.clear_config()
  if status:
    raise RuntimeError(f'`ralm {" ".join(arguments)}` ends with status {status}.')
  return shown.getvalue()


def _train(name: str, steps: int) -> None:
  _command(
    'train',
    '--gin_file=model.gin',
    *RUNS[name],
    f'--gin.MODEL_DIR={name}',
    f'--gin.TRAIN_STEPS={steps}',
  )


def make(folder: str) -> None:
  """Writes everything; the folder is new."""
  from tests import tiny

  os.makedirs(folder)
  os.chdir(folder)
  recorded_runs.write_texts(pathlib.Path('.'))
  tiny.write_jsonl(pathlib.Path('few_questions.jsonl'), tiny.questions()[:8])
  for unused in ('choices.jsonl', 'tokenizer.json', 't5.gin', 'bart.gin', 'lengths.gin'):
    os.remove(unused)
  pathlib.Path('model.gin').write_text(MODEL)
  pathlib.Path('job.gin').write_text(JOB)
  _command(
    'corpus',
    '--input=passages.jsonl',
    '--output=corpus',
    '--reader_vocabulary=reader.model',
    '--retriever_vocabulary=vocab.txt',
    '--workers=1',
  )
  for name in RUNS:
    _train(name, STEPS)
  _command('embed', '--checkpoint=tied', '--corpus=corpus', '--output=pq', '--index_type=PQ4x4np')
  _command('eval', '--gin_file=job.gin')
  _edit('first')


def _edit(word: str) -> list[str]:
  """One passage more, one with another text, one less."""
  of = ('--checkpoint=tied', EDITED)
  shown = [
    _command('add', *of, f'--id={word}', '--title=Zembla', f'--text=Zembla is a {word} lake.'),
    _command('replace', *of, f'--id={word}', '--title=Zembla', f'--text=Zembla is the {word}.'),
    _command('add', *of, f'--id={word}_too', '--title=Ada', '--text=Ada is a mountain.'),
    _command('delete', EDITED, f'--id={"p1" if word == "first" else "p2"}'),
  ]
  return [re.sub(r'[\d.]+ s\b', '… s', text) for text in shown]


def use(folder: str) -> dict[str, Any]:
  """What comes out of the folder's contents; they change."""
  os.chdir(folder)
  found: dict[str, Any] = {}
  for name, checkpoint, index, flags in (
    ('tied', 'tied', 'flat', ()),
    ('tied, two beams', 'tied/checkpoint_2', 'flat', ('--num_beams=2', '--with_loss')),
    ('two towers', 'two_towers', 'towers', ('--passage_effects',)),
    ('edited', 'tied', 'pq', ()),
  ):
    output = f'evaluated_{len(found)}'
    _command(
      'eval',
      f'--checkpoint={checkpoint}',
      f'--index={index}',
      '--questions=few_questions.jsonl',
      f'--output={output}',
      '--batch_size=8',
      *flags,
    )
    found[f'evaluation, {name}'] = {
      'predictions': _rows(f'{output}/predictions.jsonl'),
      'metrics': json.loads(pathlib.Path(output, 'metrics.json').read_text()),
    }
  cells = _written('job')
  found['job'] = _command('eval', '--gin_file=job.gin').splitlines()
  assert _written('job') == cells, 'The cells of the job were evaluated anew.'
  ask = ('ask', QUESTION, '--checkpoint=tied', EDITED, '--n_passages=5')
  found['asked'] = _command(*ask).splitlines()
  found['edits'] = _edit('second')
  found['asked after edits'] = _command(*ask).splitlines()
  for name in RUNS:
    _train(name, STEPS + 1)
    found[f'resumed, {name}'] = recorded_runs.result_of(name, STEPS + 1, from_step=STEPS)
  return found


def _rows(path: str) -> list[dict[str, Any]]:
  return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def _written(folder: str) -> dict[str, int]:
  """When each file of predictions in it was written."""
  files = glob.glob(f'{folder}/**/predictions.jsonl', recursive=True)
  assert files
  return {file: os.stat(file).st_mtime_ns for file in files}


def main(command: str, folder: str, output: str = '') -> None:
  if command == 'make':
    make(folder)
  else:
    target = pathlib.Path(output).absolute()
    target.write_text(json.dumps(use(folder), indent=1) + '\n')


if __name__ == '__main__':
  os.environ.update(recorded_runs.ENVIRONMENT)
  main(*sys.argv[1:])
