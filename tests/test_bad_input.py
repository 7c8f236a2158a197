"""Bad input: one clear error that names the place and the remedy."""

import gzip
import io
import json
import os
import pathlib
import re
import shutil
import socket
import threading

import numpy as np
import pytest

from ralm_jax import cli
from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import PassageStore
from retrieval_service import generation_writer
from retrieval_service.generations import GenerationStore
from retrieval_service.options import IndexOptions
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def trained() -> tiny.Trained:
  return tiny.trained()


@pytest.fixture
def fails(capsys):
  """Runs a command that fails; returns its one error."""

  def run(*argv, status: int = 1) -> str:
    assert cli.main([str(argument) for argument in argv]) == status
    shown = capsys.readouterr()
    assert 'Traceback' not in shown.err
    errors = [line for line in shown.err.splitlines() if line.startswith('ralm ')]
    assert len(errors) == 1, shown.err
    assert errors[0].startswith(f'ralm {argv[0]}: error: ')
    assert 'In call to configurable' not in shown.err
    return errors[0]

  return run


# Passage files.

GOOD = {'id': 'a', 'title': 't', 'text': 'some text'}
BAD_PASSAGES = {
  'malformed': ([GOOD, '{"id": "b", "text"'], ':2:', 'malformed'),
  'blank line': ([GOOD, '', GOOD], ':2:', 'blank line'),
  'no id': ([GOOD, {'title': 't', 'text': 'x'}], ':2:', "'id'"),
  'no text': ([GOOD, {'id': 'b', 'title': 't'}], ':2:', "'text'"),
  'duplicate': ([GOOD, {'id': 'b', 'text': 'x'}, GOOD], ':3:', "'a'"),
  'list': ([GOOD, '[1]'], ':2:', 'object'),
  'empty': ([], 'passages.jsonl', 'empty'),
}


@pytest.mark.parametrize('case', BAD_PASSAGES)
def test_passages(case, trained, fails, tmp_path):
  lines, *expected = BAD_PASSAGES[case]
  path = tmp_path / 'passages.jsonl'
  path.write_text(
    ''.join((line if isinstance(line, str) else json.dumps(line)) + '\n' for line in lines)
  )
  error = fails(
    'corpus',
    '--input',
    path,
    '--output',
    tmp_path / 'corpus',
    '--reader_vocabulary',
    trained.data.reader_vocabulary,
    '--retriever_vocabulary',
    trained.data.retriever_vocabulary,
  )
  assert str(path) in error
  for text in expected:
    assert text in error.lower() or text in error, error


def test_passage_file_that_is_not_there(trained, fails, tmp_path):
  error = fails(
    'corpus',
    '--input',
    tmp_path / 'none*.jsonl',
    '--output',
    tmp_path / 'c',
    '--reader_vocabulary',
    trained.data.reader_vocabulary,
    '--retriever_vocabulary',
    trained.data.retriever_vocabulary,
  )
  assert 'none*.jsonl' in error


def test_vocabulary_that_is_not_there(trained, fails, tmp_path):
  error = fails(
    'corpus',
    '--input',
    trained.data.passages,
    '--output',
    tmp_path / 'c',
    '--reader_vocabulary',
    tmp_path / 'spiece.model',
    '--retriever_vocabulary',
    trained.data.retriever_vocabulary,
  )
  assert str(tmp_path / 'spiece.model') in error


# Question files.


def _eval(trained, questions, tmp_path, *more):
  return (
    'eval',
    '--checkpoint',
    trained.run,
    '--questions',
    questions,
    '--output',
    tmp_path / 'out',
    *more,
  )


BAD_QUESTIONS = {
  'malformed': ('{"question": "a?", "answers": ["b"]}\n{"question"\n', ':2: malformed JSON'),
  'blank': ('{"question": "a?", "answers": ["b"]}\n\n', ':2: blank line'),
  'no question': ('{"answers": ["b"]}\n', ":1: missing field 'question'"),
  'no answers': ('{"question": "a?"}\n', ':1: '),
  'a string': ('{"question": "a?", "answers": "b"}\n', 'list of strings'),
  'empty': ('', 'holds no questions'),
}


@pytest.mark.parametrize('case', BAD_QUESTIONS)
def test_questions(case, trained, fails, tmp_path):
  content, expected = BAD_QUESTIONS[case]
  path = tmp_path / 'q.jsonl'
  path.write_text(content)
  error = fails(*_eval(trained, path, tmp_path, '--index', trained.index))
  assert str(path) in error and expected in error
  assert not (tmp_path / 'out').exists()


def test_question_file_that_is_not_there(trained, fails, tmp_path):
  error = fails(*_eval(trained, tmp_path / 'q.jsonl', tmp_path, '--index', trained.index))
  assert f'{tmp_path}/q.jsonl' in error and 'no such file' in error


def test_empty_question(trained, fails):
  error = fails('ask', ' ', '--checkpoint', trained.run, '--index', trained.index)
  assert 'question is empty' in error


def test_bytes_of_standard_input_that_are_no_text(trained, capsys, monkeypatch):
  content = b'good question\n\xff\xfe bad bytes\nlast'
  monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(content)))
  assert cli.main(['ask', '--checkpoint', str(trained.run), '--index', str(trained.index)]) == 1
  shown = capsys.readouterr()
  assert 'error: standard input:2: not UTF-8 at byte 0' in shown.err
  assert shown.out.count('answer: ') == 2 and '1 of 3 questions were not answered' in shown.err


# Whatever is given as a file of texts, to every command that reads one.

NO_FILES = {
  'absent': (None, 'no such file'),
  'folder': (..., 'folder|directory'),
  'empty': (b'', 'empty|holds no|no question'),
  'binary': (b'\xf3\xa2\n' * 9, 'not UTF-8'),
  'web page': (b'<html><body>', 'a web page'),
  'pointer': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'git lfs pull'),
  'parquet': (b'PAR1\x15', 'a parquet file'),
  'cut short': (gzip.compress(os.urandom(9000))[:4000], 'not UTF-8|damaged or cut short'),
}


@pytest.mark.parametrize('case', NO_FILES)
def test_no_such_text_file(case, trained, fails, tmp_path):
  content, said = NO_FILES[case]
  path = tmp_path / 'given.jsonl'
  if content is ...:
    path.mkdir()
  elif content is not None:
    path.write_bytes(content)
  data = trained.data
  vocabularies = [
    *('--reader_vocabulary', data.reader_vocabulary),
    *('--retriever_vocabulary', data.retriever_vocabulary),
  ]
  served = ('--index', trained.index)
  run = ('--checkpoint', trained.run, *served)
  training = ('--training', data.questions)
  for n, command in enumerate(
    (
      ('corpus', '--input', path, *vocabularies),
      ('add', *run, '--input', path),
      ('delete', *served, '--input', path),
      ('eval', *run, '--questions', path),
      ('infer', *run, '--questions', path, '--record_format', 'triviaqa'),
      ('leakage', '--questions', path, *training),
      ('leakage', '--questions', data.questions, *training, '--predictions', path),
      ('kilt', '--predictions', path, '--record_format', 'kilt_nq'),
      ('prepare', 'nq_open', '--from', f'train={path}/*')
      if content is ...
      else ('prepare', 'nq_open', '--from', f'train={path}'),
    )
  ):
    error = fails(
      *command, *(() if command[0] in ('add', 'delete') else ('--output', tmp_path / f'out{n}'))
    )
    assert re.search(said, error) or content is ... and 'no file matches' in error, error
    assert str(path) in error and 'Errno' not in error


@pytest.mark.parametrize('flag', ['--max_words', '--workers'])
def test_counts_are_positive(flag, trained, capsys):
  with pytest.raises(SystemExit):
    cli.main(['corpus', '--input', 'x', '--output', 'y', flag, '0'])
  assert f'argument {flag}: must be at least 1, not 0' in capsys.readouterr().err


# The index and where it is served.


def _ask(trained, *more):
  return ('ask', 'which colour?', '--checkpoint', trained.run, *more)


def test_neither_index_nor_address(trained, fails):
  error = fails(*_ask(trained))
  assert '--index' in error and '--retrieval_address' in error


def test_index_that_is_not_there(trained, fails, tmp_path):
  error = fails(*_ask(trained, '--index', tmp_path / 'nowhere'))
  assert f'{tmp_path}/nowhere holds no index' in error and 'ralm embed' in error


def test_fewer_passages_than_asked_for(trained, fails):
  error = fails(*_ask(trained, '--index', trained.index, '--n_passages', 50))
  assert 'holds 40 passages, fewer than the 50' in error
  assert 'N_PASSAGES' in error


def _index_like(trained, folder, dim=16, corpus=None, **metadata):
  """An index of forty random embeddings that names the trained corpus."""
  store = corpus or PassageStore.open(trained.data.corpus)
  metadata = {'corpus': str(store.directory), 'corpus_fingerprint': store.fingerprint, **metadata}
  with generation_writer.begin(GenerationStore(folder), IndexOptions(), dim, metadata) as writer:
    writer.append(
      None, np.random.default_rng(0).standard_normal((len(store), dim)).astype(np.float16)
    )
    writer.commit()
  return folder


def test_embeddings_of_another_dimension(trained, fails, tmp_path):
  index = _index_like(trained, tmp_path / 'index', dim=24)
  error = fails(*_ask(trained, '--index', index))
  assert 'embeddings of size 24' in error and 'makes 16' in error
  assert 'ralm embed' in error


def test_index_of_another_corpus(trained, fails, tmp_path):
  index = _index_like(trained, tmp_path / 'index', corpus_fingerprint='something else')
  error = fails(*_ask(trained, '--index', index))
  assert 'another corpus' in error and str(trained.data.corpus) in error


def test_corpus_that_has_moved(trained, fails, tmp_path):
  index = _index_like(trained, tmp_path / 'index')
  manifest = next(index.glob('generation-*/manifest.json'))
  manifest.write_text(
    manifest.read_text().replace(str(trained.data.corpus), str(tmp_path / 'moved'))
  )
  error = fails(*_ask(trained, '--index', index))
  assert str(tmp_path / 'moved') in error and '--corpus' in error


def test_corpus_of_another_vocabulary(trained, fails, tmp_path):
  vocabulary = tmp_path / 'vocab.txt'
  vocabulary.write_text(trained.data.retriever_vocabulary.read_text() + 'another\n')
  store = passage_store.build_corpus(
    trained.data.passages,
    tmp_path / 'corpus',
    trained.data.reader_vocabulary,
    vocabulary,
    n_workers=1,
    progress=False,
  )
  index = _index_like(trained, tmp_path / 'index', corpus=store)
  error = fails(*_ask(trained, '--index', index))
  assert 'another retriever vocabulary' in error and 'ralm corpus' in error


@pytest.mark.parametrize('name', ['embeddings.float16', 'index.faiss'])
def test_truncated_index(name, trained, fails, tmp_path):
  index = tmp_path / 'index'
  shutil.copytree(trained.index, index)
  path = next(index.glob(f'generation-*/{name}'))
  os.truncate(path, path.stat().st_size // 2)
  error = fails(*_ask(trained, '--index', index))
  assert str(path) in error and 'build the index again' in error


@pytest.mark.parametrize('what', ['shard', 'manifest'])
def test_truncated_corpus(what, trained, fails, tmp_path):
  corpus = tmp_path / 'corpus'
  shutil.copytree(trained.data.corpus, corpus)
  store = json.loads((corpus / 'manifest.json').read_text())
  path = corpus / (store['shards'][0]['file'] if what == 'shard' else 'manifest.json')
  os.truncate(path, path.stat().st_size // 2)
  error = fails(*_ask(trained, '--index', trained.index, '--corpus', corpus))
  assert str(path) in error and 'ralm corpus' in error


def test_server_that_is_not_there(trained, fails):
  address = f'localhost:{tiny.free_port()}'
  error = fails(*_ask(trained, '--retrieval_address', address, '--retry_for_s', '0.5'))
  assert address in error and 'cannot be reached' in error
  assert 'retrieval_service.server --index' in error


def test_address_without_port(trained, fails):
  error = fails(*_ask(trained, '--retrieval_address', 'localhost'))
  assert 'localhost' in error and 'host:port' in error


def test_server_of_something_else(trained, fails):
  """A web server answers there."""
  listener = socket.create_server(('localhost', 0))

  def serve() -> None:
    while True:
      try:
        connection, _ = listener.accept()
      except OSError:
        return
      with connection:
        connection.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')

  threading.Thread(target=serve, daemon=True).start()
  address = f'localhost:{listener.getsockname()[1]}'
  try:
    error = fails(*_ask(trained, '--retrieval_address', address, '--retry_for_s', '20'))
  finally:
    listener.close()
  assert address in error and 'no retrieval process' in error


# Checkpoints.


@pytest.fixture
def run_copy(trained, tmp_path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(trained.run, tmp_path / 'run'))


def _ask_run(trained, run):
  return ('ask', 'why?', '--checkpoint', run, '--index', trained.index)


def test_checkpoint_of_another_shape(trained, run_copy, fails):
  path = run_copy / 'model.json'
  content = json.loads(path.read_text())
  content['model']['reader_config']['mlp_dim'] = 48
  path.write_text(json.dumps(content))
  error = fails(*_ask_run(trained, run_copy))
  assert 'checkpoint_4 is of another model' in error
  assert 'reader/' in error and '32' in error and '48' in error


def test_checkpoint_that_is_not_there(trained, fails, tmp_path):
  error = fails(*_ask_run(trained, tmp_path / 'nowhere'))
  assert f'{tmp_path}/nowhere does not exist' in error


def test_folder_that_is_no_run(trained, fails):
  error = fails(*_ask_run(trained, trained.data.corpus))
  assert 'holds no checkpoint_<step>' in error


def test_damaged_model_file(trained, run_copy, fails):
  path = run_copy / 'model.json'
  path.write_text(path.read_text()[:100])
  assert f'{path} is damaged' in fails(*_ask_run(trained, run_copy))
  path.unlink()
  assert f'{path} does not exist' in fails(*_ask_run(trained, run_copy))


def test_exchanged_vocabulary(trained, run_copy, fails):
  path = run_copy / 'vocabularies' / 'retriever.txt'
  path.write_text(path.read_text() + 'another\n')
  error = fails(*_ask_run(trained, run_copy))
  assert str(path) in error and 'not the retriever vocabulary' in error


def test_truncated_checkpoint(trained, run_copy, fails):
  for path in (run_copy / 'checkpoint_4' / 'state').rglob('d/*'):
    os.truncate(path, path.stat().st_size // 2)
  error = fails(*_ask_run(trained, run_copy))
  assert 'checkpoint_4 cannot be restored' in error
  assert 'fall back to checkpoint_2' in error


# Training.


def _train(trained, run, **options):
  return tiny.train(trained.data, run, retrieval={'index': str(trained.index)}, steps=6, **options)


@pytest.mark.parametrize(
  'options, said',
  [
    ({'index_type': 'pq'}, r"INDEX_TYPE is 'pq', but .*index holds .* index_type is 'flat'"),
    ({'rerank': 7}, r'IndexOptions.rerank is 7, but .*Leave it out, or name another INDEX'),
  ],
)
def test_an_index_that_there_is_stays_as_it_is(options, said, trained, tmp_path):
  index = {'index': str(trained.index), 'options': IndexOptions(**options)}
  with pytest.raises(ValueError, match=said):
    tiny.train(trained.data, tmp_path / 'run', retrieval=index)


def test_resumed_with_another_model(trained, run_copy):
  before = (run_copy / 'model.json').read_bytes()
  with pytest.raises(ValueError, match='checkpoint_4 is of another model: reader'):
    _train(trained, run_copy, model={'reader': {'mlp_dim': 48}})
  # The run is as usable as before.
  assert (run_copy / 'model.json').read_bytes() == before


def test_resumed_with_another_vocabulary(trained, run_copy, tmp_path):
  data = tiny.Data(
    pathlib.Path(
      shutil.copytree(
        trained.data.folder,
        tmp_path / 'data',
        ignore=shutil.ignore_patterns('run', 'compilation_cache'),
      )
    )
  )
  with open(data.retriever_vocabulary, 'a', encoding='utf-8') as file:
    file.write('another\n')
  shutil.rmtree(data.corpus)
  passage_store.build_corpus(
    data.passages,
    data.corpus,
    data.reader_vocabulary,
    data.retriever_vocabulary,
    n_workers=1,
    progress=False,
  )
  index = _index_like(trained, tmp_path / 'index', corpus=PassageStore.open(data.corpus))
  with pytest.raises(ValueError, match='another retriever vocabulary'):
    tiny.train(data, run_copy, steps=6, retrieval={'index': str(index)})


def test_vocabulary_larger_than_the_model(trained, tmp_path):
  with pytest.raises(ValueError, match='reader vocabulary .* only 64'):
    _train(trained, tmp_path / 'run', model={'reader': {'vocab_size': 64}})


def test_missing_index_without_a_corpus(trained, tmp_path):
  with pytest.raises(ValueError, match='holds no index yet.* CORPUS'):
    tiny.train(
      trained.data, tmp_path / 'run', retrieval={'index': str(tmp_path / 'index'), 'corpus': None}
    )


def test_look_ahead_of_two(trained, tmp_path):
  with pytest.raises(ValueError, match='must be 0 or 1, not 2'):
    _train(trained, tmp_path / 'run', retrieval_lookahead=2)


def test_optimizer_of_what_is_not_trained(trained, tmp_path):
  with pytest.raises(ValueError, match='retriever optimizer is given'):
    _train(trained, tmp_path / 'run', model={'gold_score': 'none'})


# gin.


def _gin(*more, **macros):
  macros = {
    'MODEL_DIR': '/tmp/none',
    'TRAIN_STEPS': 2,
    'TRAIN_QUESTIONS': 'q.jsonl',
    'READER_VOCABULARY': 'r.model',
    'RETRIEVER_VOCABULARY': 'v.txt',
    **macros,
  }
  return (
    'train',
    '--gin_file=gin_configs/models/tiny.gin',
    '--gin_file=gin_configs/runs/train.gin',
    f'--gin_search_paths={ROOT}',
    *(f'--gin.{k}={v}' for k, v in macros.items() if v is not None),
    *more,
  )


def test_macro_typo(fails):
  error = fails(*_gin('--gin.TRAIN_STEP=100', '--dry_run'))
  assert 'TRAIN_STEP' in error and 'Did you mean TRAIN_STEPS?' in error


def test_macro_left_open(fails):
  error = fails(*_gin('--dry_run', TRAIN_STEPS=None))
  assert 'leaves TRAIN_STEPS open' in error and '--gin.TRAIN_STEPS=VALUE' in error


def test_parameter_typo(fails):
  error = fails(*_gin('--gin.t5.T5Config.num_head=2', '--dry_run'))
  assert "'num_head'" in error and "Did you mean 'num_heads'?" in error


def test_configurable_typo(fails):
  error = fails(*_gin('--gin.t5.T5Confg.num_heads=2', '--dry_run'))
  assert 'T5Confg' in error and 'Did you mean T5Config?' in error


def test_module_typo(fails):
  error = fails(*_gin('--gin.t6.T5Config.num_heads=2', '--dry_run'))
  assert 't6' in error


def test_gin_file_that_is_not_there(fails):
  error = fails('train', '--gin_file=gin_configs/none.gin')
  assert 'gin_configs/none.gin' in error


def test_included_file_that_is_not_there(fails, tmp_path):
  path = tmp_path / 'run.gin'
  path.write_text("include 'gin_configs/models/tinny.gin'\n")
  error = fails('train', f'--gin_file={path}')
  assert 'tinny.gin' in error


def test_gin_syntax(fails, tmp_path):
  path = tmp_path / 'run.gin'
  path.write_text('MODEL_DIR = (1,\n')
  error = fails('train', f'--gin_file={path}')
  assert 'run.gin' in error or 'MODEL_DIR' in error or 'line' in error


def test_macro_without_value(fails):
  assert '--gin.TRAIN_STEPS needs a value' in fails('train', '--gin.TRAIN_STEPS')


def test_errors_inside_gin_calls_are_plain(fails, tmp_path):
  """gin wraps what a configured function raises."""
  error = fails(*_gin(TRAIN_QUESTIONS=tmp_path / 'q.jsonl', MODEL_DIR=tmp_path / 'run'))
  assert 'r.model' in error or 'q.jsonl' in error


def test_unknown_task(trained, fails, tmp_path):
  error = fails(
    *_gin(
      MIXTURE_OR_TASK_NAME="'natural_question'",
      MODEL_DIR=tmp_path / 'run',
      TRAIN_QUESTIONS=trained.data.questions,
      READER_VOCABULARY=trained.data.reader_vocabulary,
      RETRIEVER_VOCABULARY=trained.data.retriever_vocabulary,
      INDEX=trained.index,
    )
  )
  assert "'natural_question' is not registered" in error
  assert 'MIXTURE_OR_TASK_MODULE' in error
