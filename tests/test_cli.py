"""The commands as users type them, from files to an answer."""

import json
import pathlib
import subprocess
import sys

import pytest

from ralm_jax import cli
from ralm_jax.runs import gin_config
from retrieval_service.local import LocalRetrievalServer
from tests import tiny

FIELDS = {'id', 'query', 'answers', 'prediction', 'passages', 'metrics'}
PASSAGE_FIELDS = {'id', 'title', 'text', 'score', 'probability'}


@pytest.fixture(scope='module')
def trained() -> tiny.Trained:
  return tiny.trained()


def _run(*argv) -> None:
  assert cli.main([str(argument) for argument in argv]) == 0


def _lines(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_corpus_embed_eval_ask_add(trained, tmp_path, capsys):
  """The user's own passages and questions, in four commands; and one more."""
  corpus, index, out = (tmp_path / name for name in ('corpus', 'index', 'out'))
  _run(
    'corpus',
    '--input',
    trained.data.passages,
    '--output',
    corpus,
    '--reader_vocabulary',
    trained.data.reader_vocabulary,
    '--retriever_vocabulary',
    trained.data.retriever_vocabulary,
    '--workers',
    1,
  )
  _run(
    'embed',
    '--checkpoint',
    trained.run,
    '--corpus',
    corpus,
    '--output',
    index,
    '--index_type',
    'ivf_flat',
    '--nlist',
    4,
    '--nprobe',
    4,
  )
  _run(
    'eval',
    '--checkpoint',
    trained.run,
    '--index',
    index,
    '--questions',
    trained.data.questions,
    '--output',
    out,
  )
  rows = _lines(out / 'predictions.jsonl')
  assert [row['id'] for row in rows] == [q['id'] for q in tiny.questions()]
  for row, question in zip(rows, tiny.questions()):
    assert FIELDS <= row.keys()
    assert row['query'] == question['question']
    assert row['answers'] == question['answers']
    assert len(row['passages']) == 3
    for passage in row['passages']:
      assert PASSAGE_FIELDS | {'characters_read'} == passage.keys()  # all are cut
    scores = [passage['score'] for passage in row['passages']]
    assert scores == sorted(scores, reverse=True)
    total = sum(passage['probability'] for passage in row['passages'])
    assert total == pytest.approx(1.0)
  metrics = json.loads((out / 'metrics.json').read_text())
  assert metrics['count'] == tiny.COUNT
  assert 0 <= metrics['recall@1_gold'] <= metrics['mrr_gold'] <= 1

  capsys.readouterr()
  _run('ask', tiny.questions()[3]['question'], '--checkpoint', trained.run, '--index', index)
  shown = capsys.readouterr().out
  assert shown.startswith('answer: ') and shown.count('score ') == 3
  best = rows[3]['passages'][0]
  assert f'1. {best["title"]}  [{best["id"]}]  score {best["score"]:.3f}' in shown
  assert f'answer: {rows[3]["prediction"]}' in shown

  # A passage that is added is found at once, by its own words.
  _run(
    'add',
    '--checkpoint',
    trained.run,
    '--index',
    index,
    '--id',
    'new',
    '--title',
    'Zembla',
    '--text',
    'Zembla is a lake.',
  )
  assert '1 added; 41 passages in generation 1' in capsys.readouterr().out
  _run(
    'ask', 'Zembla is a lake.', '--checkpoint', trained.run, '--index', index, '--n_passages', 41
  )
  assert '[new]' in capsys.readouterr().out
  error = cli.main(
    [
      'add',
      '--checkpoint',
      str(trained.run),
      '--index',
      str(index),
      '--id',
      'new',
      '--text',
      'again',
    ]
  )
  assert error == 1 and "'new'" in capsys.readouterr().err
  # Given another text, then taken out: the same index, edited as it is.
  _run(
    'replace',
    '--checkpoint',
    trained.run,
    '--index',
    index,
    '--id',
    'new',
    '--title',
    'Zembla',
    '--text',
    'Zembla is a mountain.',
  )
  capsys.readouterr()
  _run(
    'ask', 'Zembla is a lake.', '--checkpoint', trained.run, '--index', index, '--n_passages', 41
  )
  shown = capsys.readouterr().out
  assert 'Zembla is a mountain' in shown and 'Zembla is a lake' not in shown
  _run('delete', '--index', index, '--id', 'new')
  capsys.readouterr()
  _run(
    'ask', 'Zembla is a lake.', '--checkpoint', trained.run, '--index', index, '--n_passages', 40
  )
  assert '[new]' not in capsys.readouterr().out


def test_served_index_gives_the_same(trained, tmp_path):
  """At an address, and of one checkpoint of the run."""
  argv = (
    'eval',
    '--questions',
    trained.data.questions,
    '--checkpoint',
    trained.run / 'checkpoint_4',
  )
  _run(*argv, '--index', trained.index, '--output', tmp_path / 'own')
  with LocalRetrievalServer(trained.index, threads=1) as server:
    _run(*argv, '--retrieval_address', server.address, '--output', tmp_path / 'served')
  files = [tmp_path / name / 'predictions.jsonl' for name in ('own', 'served')]
  assert files[0].read_text() == files[1].read_text()


def test_infer_needs_no_answers(trained, tmp_path, capsys):
  path = tiny.write_jsonl(
    tmp_path / 'q.jsonl', [{'question': 'what is the colour of Almar?'}, {'question': 'why?'}]
  )
  _run(
    'infer',
    '--checkpoint',
    trained.run,
    '--index',
    trained.index,
    '--questions',
    path,
    '--output',
    tmp_path / 'out',
  )
  assert '2 answers in' in capsys.readouterr().out
  rows = _lines(tmp_path / 'out' / 'predictions.jsonl')
  assert [row['id'] for row in rows] == ['q.jsonl:1', 'q.jsonl:2']
  assert all('exact_match' not in row['metrics'] for row in rows)


def test_train_by_gin(trained, tmp_path):
  """`ralm train` with the macros of T5X, resumed by a larger TRAIN_STEPS."""
  gin_file = tmp_path / 'tiny.gin'
  gin_file.write_text("""
from __gin__ import dynamic_registration
from ralm_jax.data import text_config
from ralm_jax.models import bert
from ralm_jax.models import t5
include 'gin_configs/models/tiny.gin'
include 'gin_configs/runs/train.gin'
t5.T5Config:
  vocab_size = 256
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  mlp_dim = 32
  num_encoder_layers = 1
  num_decoder_layers = 1
bert.BertConfig:
  vocab_size = 128
  emb_dim = 16
  num_heads = 2
  num_layers = 1
  mlp_dim = 32
  max_positions = 64
text_config.TextConfig:
  query_length = 40
  reader_query_length = 24
""")
  command = [
    sys.executable,
    '-m',
    'ralm_jax.train',
    f'--gin_file={gin_file}',
    f'--gin.MODEL_DIR={tmp_path}/run',
    f'--gin.CORPUS={trained.data.corpus}',
    f'--gin.INDEX={tmp_path}/index',
    '--gin.N_PASSAGES=2',
    f'--gin.TRAIN_QUESTIONS={trained.data.questions}',
    f'--gin.READER_VOCABULARY={trained.data.reader_vocabulary}',
    f'--gin.RETRIEVER_VOCABULARY={trained.data.retriever_vocabulary}',
    f'--gin.EVAL_QUESTIONS={trained.data.questions}',
    '--gin.EVAL_PERIOD=2',
    '--gin.EVAL_NUM_EXAMPLES=4',
    '--gin.BATCH_SIZE=4',
    '--gin.PASSAGE_LENGTH=56',
    '--gin.RETRIEVER_PASSAGE_LENGTH=48',
    '--gin.TARGET_LENGTH=8',
    '--gin.STATS_PERIOD=1',
    '--gin.TRAIN_STEPS=2',
  ]
  shown = subprocess.run(
    command, env=tiny.environment(1), capture_output=True, text=True, cwd=tmp_path, check=False
  )
  assert shown.returncode == 0, shown.stderr
  assert 'step 2/2' in shown.stderr and 'evaluation at step 2' in shown.stderr
  assert 'wait ' in shown.stderr and 'steps/s' in shown.stderr
  run = tmp_path / 'run'
  assert (run / 'checkpoint_2').is_dir() and list((run / 'train').iterdir())
  assert 'MODEL_DIR = ' in (run / 'config.gin').read_text()
  assert 'RetrievalLM' in (run / 'operative_config.gin').read_text()
  rows = _lines(run / 'inference_eval' / 'step_2' / 'predictions.jsonl')
  assert len(rows) == 4
  # What it says needs no explanation by other libraries.
  for noise in ('Traceback', 'oneDNN', 'absl', 'faiss', 'UserWarning'):
    assert noise not in shown.stderr, shown.stderr


def test_usage(capsys):
  assert cli.main([]) == 2
  assert 'quickstart' in capsys.readouterr().out
  with pytest.raises(SystemExit) as raised:
    cli.main(['evaluate'])
  assert raised.value.code == 2
  with pytest.raises(SystemExit) as raised:
    cli.main(['eval', '--questions', 'q.jsonl'])
  assert raised.value.code == 2
  assert '--checkpoint' in capsys.readouterr().err


@pytest.mark.parametrize('command', cli.COMMANDS)
def test_help(command, capsys):
  with pytest.raises(SystemExit) as raised:
    cli.main([command, '--help'])
  assert raised.value.code == 0
  assert capsys.readouterr().out.startswith(f'usage: ralm {command}')


def test_gin_arguments():
  rest, bindings = gin_config.split_gin_arguments(
    [
      '--gin.MODEL_DIR=/tmp/run',
      '--gin.TRAIN_STEPS=10',
      '--dry_run',
      "--gin.NAME='quoted'",
      '--gin.RATE=1e-3',
      '--gin.X=None',
      '--gin.TASK=@qa.jsonl_task()',
      '--gin.MACRO=%OTHER',
      '--gin.DATE=2024/run',
      "--gin.FILES=['a', 'b']",
      '--gin.EXPRESSION=a=b',
    ]
  )
  assert rest == ['--dry_run']
  assert bindings == [
    "MODEL_DIR = '/tmp/run'",
    'TRAIN_STEPS = 10',
    "NAME = 'quoted'",
    'RATE = 1e-3',
    'X = None',
    'TASK = @qa.jsonl_task()',
    'MACRO = %OTHER',
    "DATE = '2024/run'",
    "FILES = ['a', 'b']",
    "EXPRESSION = 'a=b'",
  ]
