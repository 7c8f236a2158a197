"""Adding, replacing and deleting passages of a served index, by real commands."""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from ralm_jax.commands import edits as commands
from ralm_jax.data.corpus import passage_store, passages as passages_lib
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.retrieval import connect
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.retrieval.retriever import PassageRetriever
from ralm_jax.runs import embedding, live_edits
from ralm_jax.runs.live_edits import Edited
from retrieval_service.client import RetrievalClient
from retrieval_service.local import LocalRetrievalServer
from tests import tiny

Passage = passages_lib.Passage
LONG = ' '.join(f'w{i}' for i in range(25))  # Three parts of at most ten words.


@dataclasses.dataclass(frozen=True)
class Index:
  """An index that a test may change, and its corpus.

  Attributes:
    folder: holds both.
    checkpoint: that embedded it.
  """

  folder: pathlib.Path
  checkpoint: str

  @property
  def corpus(self) -> pathlib.Path:
    return self.folder / 'corpus'

  @property
  def flags(self) -> list[str]:
    return ['--index', str(self.folder / 'index')]

  def put(self, *passages: Passage, **options) -> Edited:
    return live_edits.put(
      passages, checkpoint=self.checkpoint, index=str(self.folder / 'index'), **options
    )

  def delete(self, *ids: str) -> Edited:
    return live_edits.delete(ids, index=str(self.folder / 'index'))

  def store(self) -> PassageStore:
    return PassageStore.open(self.corpus)

  def held(self) -> dict[int, str]:
    """Row and text of every passage that a search can find."""
    with connect.connect(IndexSource(self.folder / 'index', threads=1)) as connected:
      count = connected.client.status().count
      retriever = PassageRetriever(connected.client, connected.store, count)
      (rows,) = retriever.search(np.ones((1, 16), np.float32)).rows
      return {p.row: p.text for p in connected.store.passages(rows)}


@pytest.fixture(scope='module')
def original(tmp_path_factory) -> Index:
  """Forty passages, each long enough to be cut in two."""
  trained = tiny.trained()
  folder = tmp_path_factory.mktemp('edits')
  passage_store.build_corpus(
    trained.data.passages,
    folder / 'corpus',
    trained.data.reader_vocabulary,
    trained.data.retriever_vocabulary,
    max_words=10,
    n_workers=1,
    progress=False,
  )
  checkpoint = str(trained.run)
  embedding.embed(
    checkpoint=checkpoint,
    corpus=str(folder / 'corpus'),
    output=str(folder / 'index'),
    progress=False,
  )
  return Index(folder, checkpoint)


@pytest.fixture
def index(original, tmp_path) -> Index:
  shutil.copytree(original.folder, tmp_path / 'copy')
  return Index(tmp_path / 'copy', original.checkpoint)


def _texts(index: Index, passage_id: str) -> list[str]:
  """What a search can find of a passage, in row order."""
  held = index.held()
  found = index.store().find([passage_id])
  return [held[row] for row in sorted(found.rows.tolist()) if row in held]


def test_add(index):
  before = index.held()
  edited = index.put(Passage('new', 'Zembla', '', LONG, date='2019'), Passage('more', '', '', 'x'))
  assert edited.put.tolist() == [80, 81, 82, 83] and not len(edited.deleted)
  # A live edit, not a new generation.
  assert edited.generation == 1 and edited.count == len(before) + 4 == 84
  assert _texts(index, 'new') == [
    part.text for part in passages_lib.split_long(Passage('new', '', '', LONG), 10)
  ]
  after = index.held()
  assert before.items() <= after.items() and len(after) == 84
  with connect.connect(IndexSource(index.folder / 'index')) as connected:
    metadata = connected.client.status().metadata
  assert metadata['corpus_fingerprint'] == index.store().fingerprint
  assert metadata['checkpoint'].endswith('checkpoint_4')


def test_adding_again_changes_nothing(index):
  passages = [Passage('new', 'Zembla', '', LONG), Passage('p3', *_stored(index, 'p3'))]
  index.put(*passages)
  files = sorted(os.listdir(index.corpus))
  held = index.held()
  edited = index.put(*passages)
  assert sorted(os.listdir(index.corpus)) == files
  assert edited.count == len(held) == 83 and index.held() == held


def _stored(index, passage_id) -> tuple[str, str, str]:
  rows = {p['id']: p for p in tiny.passages()}
  return rows[passage_id]['title'], '', rows[passage_id]['text']


@pytest.mark.parametrize(
  'passage',
  [
    Passage('p3', 'other', '', 'text'),
    Passage('p3#1', '', '', 'text'),
    Passage('fresh', '', '', 'text', date='soon'),
  ],
)
def test_what_cannot_be_added(index, passage):
  held = index.held()
  with pytest.raises(ValueError, match="duplicate id 'p3|'soon' is no date"):
    index.put(passage)
  assert len(index.store()) == 80 and index.held() == held


def test_a_change_of_any_field_is_a_replacement(index):
  title, section, text = _stored(index, 'p3')
  for passage in [
    Passage('p3', title, section, text, date='2019'),
    Passage('p3', title, section, text, document='d'),
    Passage('p3', title, 's', text),
    Passage('p3', 't', section, text),
  ]:
    with pytest.raises(ValueError, match='duplicate id'):
      index.put(passage)


def _recorded_edits(monkeypatch) -> list[tuple]:
  edits = []
  original_edit = RetrievalClient.edit

  def edit(self, ids=None, embeddings=None, **options):
    result = original_edit(self, ids, embeddings, **options)
    delete_ids = options.get('delete_ids')
    edits.append(
      (list(ids if ids is not None else ()), list(delete_ids if delete_ids is not None else ()))
    )
    return result

  monkeypatch.setattr(RetrievalClient, 'edit', edit)
  return edits


def test_replace(index, monkeypatch):
  """One edit puts every new part in and takes every old part out."""
  held = index.held()
  old = index.store().find(['p3']).rows.tolist()
  assert len(old) == 2
  edits = _recorded_edits(monkeypatch)
  edited = index.put(Passage('p3', 'n', '', LONG), replace=True)
  assert edits == [([80, 81, 82], old)]
  assert edited.deleted.tolist() == old and edited.count == 81
  assert _texts(index, 'p3') == [
    p.text for p in passages_lib.split_long(Passage('', '', '', LONG), 10)
  ]
  others = {row: text for row, text in held.items() if row not in old}
  assert others.items() <= index.held().items()
  # And shorter, again, and the same once more.
  for text in ('one', 'two', 'two'):
    index.put(Passage('p3', 'n', '', text), replace=True)
    assert _texts(index, 'p3') == [text]
  # Every version that is not put, for older generations may have it.
  versions = [*old, 80, 81, 82, 83]
  assert edits[1:] == [([83], versions[:-1]), ([84], versions), ([84], versions)]
  assert index.store().superseded().tolist() == [*old, 80, 81, 82, 83]


def test_replacing_many_at_once(index, monkeypatch):
  edits = _recorded_edits(monkeypatch)
  for text in ('first', 'second'):
    index.put(
      *[Passage(f'p{i}', 't', '', f'{text} {i}') for i in range(40)],
      Passage(f'new {text}', '', '', text),
      replace=True,
    )
  assert len(edits) == 2
  held = index.held()
  assert sorted(held.values()) == sorted([f'second {i}' for i in range(40)] + ['first', 'second'])


def test_only_known_passages_are_replaced(index):
  for passages in [
    [Passage('typo', '', '', 'x')],
    [Passage('p3', '', '', 'x'), Passage('typo', '', '', 'x')],
  ]:
    with pytest.raises(KeyError, match="no passage with id 'typo'"):
      live_edits.put(
        passages,
        checkpoint=index.checkpoint,
        index=str(index.folder / 'index'),
        replace=True,
        known=True,
      )
  assert len(index.store()) == 80


_KILLED = """
import os, signal, sys
from retrieval_service import client as client_lib
edit = client_lib.RetrievalClient.edit
def killed(*args, **options):
  if sys.argv[1] == 'after':
    edit(*args, **options)
  os.kill(os.getpid(), signal.SIGKILL)
client_lib.RetrievalClient.edit = killed
from ralm_jax.commands import edits
edits.add(sys.argv[2:])
"""


def _killed(index, when, *argv):
  """Runs `ralm add` that dies at once before or after its edit."""
  process = subprocess.run(
    [sys.executable, '-c', _KILLED, when, '--checkpoint', index.checkpoint, *index.flags, *argv],
    env=tiny.environment(1),
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == -signal.SIGKILL, process.stderr


@pytest.mark.slow
@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_command_that_is_killed_is_completed_by_itself(index, when):
  """In the corpus, not yet in the index; or in both, and not yet said so."""
  argv = ['--id', 'p3', '--title', 'n', '--text', LONG, '--replace']
  held = index.held()
  _killed(index, when, *argv)
  assert len(index.store()) == 83
  new = [p.text for p in passages_lib.split_long(Passage('', '', '', LONG), 10)]
  old = [held[row] for row in index.store().find(['p3']).rows.tolist() if row < 80]
  # As it was or as it is, nothing between.
  assert _texts(index, 'p3') == (old if when == 'before' else new)
  commands.add(['--checkpoint', index.checkpoint, *index.flags, *argv])
  assert len(index.store()) == 83 and _texts(index, 'p3') == new
  assert len(index.held()) == 81


@pytest.mark.slow
def test_what_a_killed_command_left_behind(index):
  """Whatever is done instead of repeating it, one version is found."""
  _killed(index, 'before', '--id', 'p3', '--text', 'never seen', '--replace')
  _killed(index, 'before', '--id', 'p4', '--text', 'never seen', '--replace')
  _killed(index, 'before', '--id', 'new', '--text', 'never seen')
  held = index.held()
  assert len(held) == 80 and 'never seen' not in held.values()
  # Replaced by another text: the version before the one that never was goes.
  index.put(Passage('p3', '', '', 'seen'), replace=True)
  assert _texts(index, 'p3') == ['seen']
  # Deleted: the version that the index has goes.
  edited = index.delete('p4')
  assert len(edited.deleted) == 2 and _texts(index, 'p4') == []
  with pytest.raises(LookupError, match="index has no passage 'new'"):
    index.delete('new')
  # Another passage that is added does not bring them along.
  index.put(Passage('other', '', '', 'x'))
  held = index.held()
  assert 'never seen' not in held.values() and len(held) == 78


def test_delete(index):
  held = index.held()
  rows = index.store().find(['p3', 'p7']).rows.tolist()
  edited = index.delete('p3', 'p7', 'p3')
  assert sorted(edited.deleted.tolist()) == sorted(rows) and len(rows) == 4
  assert edited.count == 76 and edited.generation == 1 and not len(edited.put)
  assert index.held() == {r: t for r, t in held.items() if r not in rows}
  # One part alone.
  edited = index.delete('p8#1')
  assert len(edited.deleted) == 1 and len(_texts(index, 'p8')) == 1
  # And then the rest of it.
  assert len(index.delete('p8').deleted) == 1 and _texts(index, 'p8') == []


@pytest.mark.parametrize(
  'ids, message',
  [
    (['nobody'], "no passage with id 'nobody'"),
    (['p3', 'nobody', 'noone'], r"'nobody' \(nor 1 others\)"),
    (['p5'], "The index has no passage 'p5' any more .*nothing was deleted"),
    (['p3', 'p5'], "no passage 'p5' any more"),
    ([], 'No passage ids'),
  ],
)
def test_what_cannot_be_deleted(index, ids, message):
  """All or none."""
  index.delete('p5')
  held = index.held()
  with pytest.raises((LookupError, ValueError), match=message):
    index.delete(*ids)
  assert index.held() == held


@pytest.mark.slow
def test_a_deleted_passage_comes_back_when_it_is_added(index):
  texts = _texts(index, 'p3')
  index.delete('p3')
  edited = index.put(Passage('p3', *_stored(index, 'p3')))
  assert edited.count == 80 and _texts(index, 'p3') == texts
  # Or in another form, where nothing is left to take out.
  index.delete('p3')
  with pytest.raises(ValueError, match='duplicate id'):
    index.put(Passage('p3', '', '', 'new'))
  index.put(Passage('p3', '', '', 'new'), replace=True)
  assert _texts(index, 'p3') == ['new']
  # After many versions, too.
  index.put(Passage('p3', '', '', 'newer'), replace=True)
  index.delete('p3')
  index.put(Passage('p3', '', '', 'newest'), replace=True)
  assert _texts(index, 'p3') == ['newest'] and len(index.held()) == 79


def test_at_an_address(index, capsys, tmp_path):
  """By the commands, while others search."""
  ids = tmp_path / 'ids.txt'
  ids.write_text('p7\n\np9\r\n')
  with LocalRetrievalServer(index.folder / 'index', threads=1) as server:
    flags = ['--retrieval_address', server.address, '--corpus', str(index.corpus)]
    model = ['--checkpoint', index.checkpoint]
    with RetrievalClient(server.address) as client:
      retriever = PassageRetriever(client, index.store(), 5)
      search = lambda: retriever.search(np.ones((2, 16), np.float32)).rows
      search()
      commands.add(
        [
          *model,
          *flags,
          '--id',
          'new',
          '--title',
          'Zembla',
          '--text',
          'Zembla is a lake.',
          '--date',
          '2019-05',
          '--document',
          'd',
        ]
      )
      assert '1 added; 81 passages in generation 1' in capsys.readouterr().out
      commands.replace([*model, *flags, '--id', 'new', '--text', 'Zembla is gone.'])
      assert '1 replaced; 81 passages' in capsys.readouterr().out
      commands.delete([*flags, '--id', 'p3', '--input', str(ids), '--id', 'p7'])
      assert '3 deleted; 75 passages' in capsys.readouterr().out
      gone = index.store().find(['p3', 'p7', 'p9']).rows
      assert not np.isin(search(), gone).any()
      assert client.status().next_id == 82
  store = index.store()
  assert store.passage(80).date == '2019-05-31' and store.passage(80).document == 'd'
  # It is all there when the process comes up again.
  held = index.held()
  assert len(held) == 75 and not set(gone.tolist()) & set(held)
  assert held[81] == 'Zembla is gone.' and 80 not in held


@pytest.mark.parametrize(
  'main, argv, message',
  [
    (commands.delete, [], 'give --id or --input'),
    (commands.replace, ['--checkpoint', 'c', '--text', 'x'], 'give the --id'),
    (commands.add, ['--checkpoint', 'c'], 'give either --text'),
  ],
)
def test_usage(main, argv, message, capsys):
  with pytest.raises(SystemExit) as raised:
    main(['--index', 'i', *argv], prog='ralm')
  assert raised.value.code == 2 and message in capsys.readouterr().err


def test_files_of_ids(tmp_path):
  path = tmp_path / 'ids.txt'
  path.write_text('\n \n')
  with pytest.raises(ValueError, match='ids.txt: holds no ids'):
    commands.read_ids(str(path))
  path.write_bytes(b'caf\xe9\n')
  with pytest.raises(ValueError, match='ids.txt:1: not UTF-8'):
    commands.read_ids(str(path))
  path.write_bytes('\ufeffé 7\r\np#1'.encode())
  assert commands.read_ids(str(path)) == ['é 7', 'p#1']
