"""Answers over a folder of documents: what is built, what is kept, and what is built anew."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import pytest

from ralm_jax import cli
from ralm_jax.files import checksums
from ralm_jax.interop import convert
from ralm_jax.retrieval.embedding import PassageEmbedder
from ralm_jax.runs import asking
from ralm_jax.runs.workspace import Ingredients, Workspace
from tests import decoder_folders, tiny
from tests.interop import huggingface_folders

QUESTION = 'what is the colour of Bonel?'


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> pathlib.Path:
  """Two readers and two retrievers in Hugging Face's layout."""
  folder = tmp_path_factory.mktemp('weights')
  data = tiny.trained().data
  for number in range(2):
    reader, retriever = folder / f'reader{number}', folder / f'retriever{number}'
    model = huggingface_folders.t5(vocab_size=256)
    huggingface_folders.randomize(model, number).save_pretrained(reader)
    shutil.copy(data.reader_vocabulary, reader / 'spiece.model')
    huggingface_folders.sentence_transformer(retriever)
    model = huggingface_folders.bert(vocab_size=128, max_position_embeddings=256)
    huggingface_folders.randomize(model, number).save_pretrained(retriever)
    shutil.copy(data.retriever_vocabulary, retriever / 'vocab.txt')
  return folder


@pytest.fixture
def documents(tmp_path) -> pathlib.Path:
  """Two files of passages, one in a folder of its own, and a file of something else."""
  folder = tmp_path / 'documents'
  (folder / 'more').mkdir(parents=True)
  tiny.write_jsonl(folder / 'first.jsonl', tiny.passages()[:20])
  tiny.write_jsonl(folder / 'more' / 'second.jsonl', tiny.passages()[20:])
  (folder / 'notes.md').write_text('# Not yet')
  return folder


class Work:
  """What a workspace does: conversions, corpora and passages that are encoded."""

  def __init__(self, monkeypatch):
    self.done: list[str] = []
    kept, embed = convert.convert, PassageEmbedder.embed

    def converted(*arguments, **options):
      self.done.append('convert')
      return kept(*arguments, **options, progress=False)

    def embedded(embedder, params, rows):
      self.done.append(f'embed {len(rows)}')
      return embed(embedder, params, rows)

    monkeypatch.setattr(convert, 'convert', converted)
    monkeypatch.setattr(PassageEmbedder, 'embed', embedded)

  def take(self) -> list[str]:
    done, self.done = self.done, []
    return done


@pytest.fixture
def work(monkeypatch) -> Work:
  return Work(monkeypatch)


@pytest.fixture
def ask(weights, documents, tmp_path, capsys):
  """Runs the command; gives its status, what it prints and what it says."""

  def run(*more, question=QUESTION, **names):
    names = {'documents': documents, 'workspace': tmp_path / 'kept', **names}
    names.setdefault('reader', weights / 'reader0')
    names.setdefault('retriever', weights / 'retriever0')
    flags = [f'--{name}={value}' for name, value in names.items()]
    status = cli.main(['ask', *flags, *more, *([question] if question else [])])
    return status, *capsys.readouterr()

  return run


def test_what_is_there_is_used_and_what_changes_is_built_anew(
  ask, documents, work, weights, tmp_path
):
  status, first, said = ask('--n_passages=3')
  assert status == 0 and work.take() == ['convert', 'embed 40']
  assert 'workspace: ' in said and '1 files are left out (1 .md)' in said
  assert first.startswith('answer: ') and first.count('probability') == 3
  assert ask('--n_passages=3') == (0, first, '') and work.take() == []

  (documents / 'more' / 'second.jsonl').touch()  # The same content, as another time says nothing.
  assert ask('--n_passages=3') == (0, first, '') and work.take() == []
  rows = tiny.passages()
  rows[30]['text'] = 'Entirely another text.'
  tiny.write_jsonl(documents / 'more' / 'second.jsonl', rows[20:])
  assert ask()[0] == 0 and work.take() == ['embed 1']

  assert ask(reader=weights / 'reader1')[0] == 0
  assert work.take() == ['convert']  # The corpus and its embeddings are of the same vocabularies.
  assert ask(retriever=weights / 'retriever1')[0] == 0
  assert work.take() == ['convert', 'embed 40']
  assert ask(max_words=10)[0] == 0
  assert work.take() == ['embed 78']  # Two halves of each text but the one of three words.
  assert ask(text='retriever_passage_length=20')[0] == 0
  assert work.take() == ['embed 40']
  assert ask()[2] == '' and work.take() == []  # All of them are kept.
  shutil.rmtree(tmp_path / 'kept' / 'models')
  assert ask()[0] == 0 and work.take() == ['convert']


def test_what_is_of_former_documents_is_removed(ask, documents, tmp_path):
  assert ask()[0] == 0
  place = next((tmp_path / 'kept' / 'documents').iterdir())
  before = {path.name for path in (place / 'corpora').iterdir()}
  (documents / 'first.jsonl').unlink()
  assert ask()[0] == 0
  after = {path.name for path in (place / 'corpora').iterdir()}
  assert len(after) == 1 and not before & after
  assert len(list((place / 'indexes').glob('*/*'))) == 1


def test_the_answer_is_of_separate_commands(ask, documents, weights, tmp_path, capsys):
  """Converted, built, embedded and asked one by one."""
  shown = json.loads(ask('--json', '--n_passages=4')[1])
  sources = [f'{side}={weights / side}0' for side in ('reader', 'retriever')]
  run, corpus, index = (str(tmp_path / name) for name in ('run', 'corpus', 'index'))
  for argv in (
    ['convert', '--from', *sources, '--to', run],
    ['corpus', '--input', str(documents / '**' / '*.jsonl'), '--output', corpus,
     '--reader_vocabulary', str(weights / 'reader0' / 'spiece.model'),
     '--retriever_vocabulary', str(weights / 'retriever0' / 'vocab.txt')],
    ['embed', '--checkpoint', run, '--corpus', corpus, '--output', index],
  ):  # fmt: skip
    assert cli.main(argv) == 0
  capsys.readouterr()
  separate = ['--checkpoint', run, '--index', index, '--n_passages', '4', '--json']
  assert cli.main(['ask', QUESTION, *separate]) == 0
  expected = json.loads(capsys.readouterr().out)
  assert shown['answer'] == expected['answer'] and shown['question'] == QUESTION
  assert [one['id'] for one in shown['passages']] == [one['id'] for one in expected['passages']]
  for ours, theirs in zip(shown['passages'], expected['passages']):
    assert ours['probability'] == pytest.approx(theirs['probability'], abs=1e-4)


def test_more_passages_than_there_are(ask, documents):
  shutil.rmtree(documents / 'more')
  tiny.write_jsonl(documents / 'first.jsonl', tiny.passages()[:2])
  status, shown, _ = ask()
  assert status == 0 and shown.count('probability') == 2


_KILLED = """
import os, signal, sys
from ralm_jax import cli
from ralm_jax.runs import embedding
from ralm_jax.data.corpus import passage_store
module = {'corpus': passage_store, 'index': embedding}[sys.argv[1]]
name = {'corpus': 'build_corpus', 'index': 'embed'}[sys.argv[1]]
setattr(module, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
cli.main(['ask', *sys.argv[2:], 'why?'])
"""


@pytest.mark.slow
@pytest.mark.parametrize('where, rest', [('corpus', ['embed 40']), ('index', ['embed 40'])])
def test_goes_on_where_it_was_killed(where, rest, ask, documents, work, weights, tmp_path):
  flags = [
    f'--documents={documents}',
    f'--workspace={tmp_path / "kept"}',
    f'--reader={weights / "reader0"}',
    f'--retriever={weights / "retriever0"}',
  ]
  argv = [sys.executable, '-c', _KILLED, where, *flags]
  ran = subprocess.run(argv, env=tiny.environment(), capture_output=True, check=False)
  assert ran.returncode == -signal.SIGKILL, ran.stderr
  assert ask()[0] == 0 and work.take() == rest


@pytest.mark.slow
def test_two_at_once(documents, weights, tmp_path):
  """One builds, the other waits for it."""
  argv = [
    *(sys.executable, '-m', 'ralm_jax', 'ask', QUESTION, f'--documents={documents}'),
    *(f'--workspace={tmp_path / "kept"}', f'--reader={weights / "reader0"}'),
    f'--retriever={weights / "retriever0"}',
  ]
  pipe = subprocess.PIPE
  both = [
    subprocess.Popen(argv, env=tiny.environment(1), stdout=pipe, stderr=pipe, text=True)
    for _ in range(2)
  ]
  shown = [process.communicate(timeout=300) for process in both]
  assert [process.returncode for process in both] == [0, 0], shown
  assert shown[0][0] == shown[1][0] and shown[0][0].startswith('answer: ')
  said = sorted(error for _, error in shown)
  assert sum('converting' in error for error in said) == 1
  assert sum('waiting for it' in error or not error for error in said) == 1


def _newer(kept: pathlib.Path) -> None:
  kept.mkdir()
  (kept / 'workspace.json').write_text('{"format": 99}')


def _damaged(kept: pathlib.Path) -> None:
  kept.mkdir()
  (kept / 'workspace.json').write_text('{"for')


def _foreign(kept: pathlib.Path) -> None:
  kept.mkdir()
  (kept / 'thesis.tex').write_text('mine')


@pytest.mark.parametrize(
  'spoil, message',
  [
    (_newer, 'a newer version made it'),
    (_damaged, 'is damaged'),
    (_foreign, 'is no workspace'),
    (lambda kept: kept.write_text(''), 'not a directory'),
  ],
)
def test_folders_that_are_no_workspace(spoil, message, ask, tmp_path):
  spoil(tmp_path / 'kept')
  before = sorted(tmp_path.rglob('*'))
  status, _, error = ask()
  assert status == 1 and message in error and str(tmp_path / 'kept') in error
  assert error.count('\n') == 1 and sorted(tmp_path.rglob('*')) == before


def _empty(folder: pathlib.Path) -> None:
  shutil.rmtree(folder)
  folder.mkdir()


def _others(folder: pathlib.Path) -> None:
  shutil.rmtree(folder / 'more')
  (folder / 'first.jsonl').unlink()


def _malformed(folder: pathlib.Path) -> None:
  with open(folder / 'more' / 'second.jsonl', 'a') as file:
    file.write('{"id": "x", "text"\n')


def _twice(folder: pathlib.Path) -> None:
  shutil.copy(folder / 'first.jsonl', folder / 'third.jsonl')


@pytest.mark.parametrize(
  'spoil, message',
  [
    (shutil.rmtree, 'no such file'),
    (_empty, 'no file of passages; passages are read from jsonl, tsv and csv (id, text, title), '
     'plain or compressed, the folder is empty'),
    (_others, 'found 1 .md'),
    (_malformed, 'second.jsonl:21: '),
    (_twice, "third.jsonl:1: duplicate id 'p0', first on"),
  ],
)  # fmt: skip
def test_documents_that_cannot_be_read(spoil, message, ask, documents):
  spoil(documents)
  status, shown, error = ask()
  assert (status, shown) == (1, '') and message in error and str(documents) in error


@pytest.mark.parametrize(
  'more, question, message',
  [
    (['--index=I'], QUESTION, '--index names another; leave one of them out'),
    (['--checkpoint=C'], QUESTION, '--checkpoint names another'),
    ([], ' ', 'The question is empty'),
    (['--text=query=3'], QUESTION, '--text query=3: expected FIELD=VALUE'),
  ],
)
def test_flags_that_do_not_go_together(more, question, message, ask, tmp_path):
  status, _, error = ask(*more, question=question)
  assert status == 1 and message in error and not (tmp_path / 'kept').exists()


@pytest.mark.parametrize(
  'argv, message',
  [
    ([], 'Give --documents FOLDER, or --checkpoint CKPT with its --index INDEX'),
    (['--checkpoint=C', '--reader=R'], '--reader goes with --documents FOLDER'),
  ],
)
def test_flags_without_documents(argv, message, capsys):
  assert cli.main(['ask', 'why?', *argv]) == 1 and message in capsys.readouterr().err


def test_unknown_weights(ask, tmp_path):
  status, _, error = ask(reader=tmp_path / 'nowhere')
  assert status == 1 and 'nowhere' in error and not (tmp_path / 'kept').exists()


def test_documents_that_change_while_they_are_read(ask, documents, monkeypatch):
  from ralm_jax.data.corpus import passage_store

  build = passage_store.build_corpus

  def built(*arguments, **options):
    store = build(*arguments, **options)
    (documents / 'first.jsonl').unlink(missing_ok=True)
    (documents / 'first.jsonl').write_text('')
    return store

  monkeypatch.setattr(passage_store, 'build_corpus', built)
  status, _, error = ask()
  assert status == 1 and 'changed while it was read' in error


def test_checksums_are_read_again_only_where_a_file_changed(tmp_path, monkeypatch):
  path, memory = tmp_path / 'file', tmp_path / 'memory.json'
  path.write_text('one')
  os.utime(path, (1, 1))
  read = []
  honest = checksums.sha256_of
  monkeypatch.setattr(checksums, 'sha256_of', lambda name: read.append(name) or honest(name))

  def ask_again() -> str:
    known = checksums.Remembered(memory)
    found = known.sha256_of(path)
    known.save()
    return found

  one = ask_again()
  assert ask_again() == one and len(read) == 2  # Just written: the clock cannot tell.
  monkeypatch.setattr(checksums, '_TICK_NS', 0)
  assert [ask_again(), ask_again()] == [one, one] and len(read) == 3
  path.write_text('two')
  os.utime(path, (1, 1))  # As long and as old as before, but not the same.
  assert ask_again() != one and len(read) == 4


def test_a_session(weights, documents, tmp_path, monkeypatch, capsys):
  """Lines of standard input, of which one fails and the others are answered."""
  import io

  monkeypatch.setattr(sys, 'stdin', io.StringIO(f'{QUESTION}\n\nwhat is the colour of Almar?\n'))
  flags = {'documents': documents, 'workspace': tmp_path / 'kept'}
  flags |= {side: weights / f'{side}0' for side in ('reader', 'retriever')}
  assert cli.main(['ask', '--json', *(f'--{name}={flag}' for name, flag in flags.items())]) == 0
  answers = list(map(json.loads, capsys.readouterr().out.splitlines()))
  assert [answer['question'] for answer in answers] == [QUESTION, 'what is the colour of Almar?']


@pytest.mark.parametrize(
  'family, text, style, system',
  [
    ('smollm2', {}, 'chat', 'Answer in one short sentence from the context.'),
    ('smollm2', {'system_prompt': 'Be brief.'}, 'chat', 'Be brief.'),
    ('smollm2', {'prompt_style': 'plain'}, 'plain', ''),
    ('mistral', {}, 'chat', ''),
    ('base', {}, 'plain', ''),
  ],
)
def test_readers_that_converse_are_asked_so(
  family, text, style, system, weights, documents, tmp_path
):
  decoder_folders.write(tmp_path / 'reader', 'smollm2' if family == 'base' else family)
  if family == 'base':
    (tmp_path / 'reader' / 'tokenizer_config.json').write_text(
      json.dumps(decoder_folders.CONFIGS['smollm2'])
    )
  fields = {'vocab_size': 1000, 'max_position_embeddings': 1100}
  huggingface_folders.decoder('smollm', **fields).save_pretrained(tmp_path / 'reader')
  ingredients = Ingredients(
    str(documents), str(tmp_path / 'reader'), str(weights / 'retriever0'), text=text
  )
  with Workspace(tmp_path / 'kept', ingredients).opened() as opened:
    found = opened.checkpoint.spec.text
    assert (found.prompt_style, found.system_prompt) == (style, system)
    if family != 'smollm2' or text:
      return
    with asking.open_session(
      checkpoint=opened.checkpoint, source=opened.source, n_passages=3
    ) as answer:
      with _compiled() as programs:
        first = answer(QUESTION)
        assert len(first.passages) == 3 and isinstance(first.prediction, str)
        programs.clear()
        answer('where in the north is it, and what else does every visitor remember of it?')
        assert not programs  # One program for questions and passages of any length.


@contextlib.contextmanager
def _compiled():
  programs = []
  listen = lambda name, *_, **__: programs.append(name) if 'backend_compile' in name else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield programs
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_ingredients_are_checked():
  with pytest.raises(ValueError, match='max_words'):
    Workspace('nowhere', Ingredients('documents', 'reader', 'retriever', max_words=0))
