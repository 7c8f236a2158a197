"""Another year's index under a running evaluation: the answers follow, whole."""

import dataclasses
import io
import itertools
import json
import pathlib
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from ralm_jax import cli
from ralm_jax.commands import ask
from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.data.questions import reading
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation.task import EvaluationTask, PassageOptions
from ralm_jax.retrieval import connect
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.retrieval.publisher import IndexPublisher
from ralm_jax.retrieval.retriever import PassageRetriever
from ralm_jax.runs import embedding, evaluation, live_edits, opening
from ralm_jax.runs.opening import OpenedCheckpoint
from retrieval_service import generation_writer
from retrieval_service.client import IndexSwappedError, RetrievalClient
from retrieval_service.generations import GenerationStore
from retrieval_service.local import LocalRetrievalServer
from retrieval_service.options import IndexOptions
from retrieval_service.server import RetrievalServer
from tests import tiny

BATCH = 8
YEARS = ('2018', '2019')


@dataclasses.dataclass(frozen=True)
class World:
  """Two years' corpora with their indexes, and the same questions.

  Attributes:
    folder: holds them.
    opened: the checkpoint that embedded both.
    questions: 24, each with passages of either year that it must not see.
    plain: for each index id, the records of an evaluation of that year alone.
  """

  folder: pathlib.Path
  opened: OpenedCheckpoint
  questions: list[Question]
  plain: dict[str, list[dict]]

  def index(self, year: str) -> str:
    return str(self.folder / f'index_{year}')

  def corpus(self, year: str) -> pathlib.Path:
    return self.folder / f'corpus_{year}'

  def index_id(self, year: str) -> str:
    return GenerationStore(self.index(year)).index_id()


def _passages(year: str) -> list[dict]:
  """The other year has other ids, another order, other texts and one more."""
  rows = tiny.passages()
  if year == '2019':
    colours = ('red', 'green', 'blue', 'white', 'black', 'golden', 'silver')
    swapped = dict(zip(colours, colours[::-1]))
    rows = [
      {
        'id': f'new{row["id"]}',
        'title': row['title'],
        'text': ' '.join(swapped.get(word, word) for word in row['text'].split()),
      }
      for row in rows[::-1]
    ]
    rows.insert(0, {'id': 'first', 'title': 'Bomar', 'text': 'What nobody knew.'})
  return rows


@pytest.fixture(scope='module')
def world(tmp_path_factory) -> World:
  trained = tiny.trained()
  folder = tmp_path_factory.mktemp('years')
  opened = opening.open_checkpoint(trained.run)
  for year in YEARS:
    passage_store.build_corpus(
      tiny.write_jsonl(folder / f'{year}.jsonl', _passages(year)),
      folder / f'corpus_{year}',
      trained.data.reader_vocabulary,
      trained.data.retriever_vocabulary,
      n_workers=1,
      progress=False,
    )
    embedding.embed(
      checkpoint=str(trained.run),
      corpus=str(folder / f'corpus_{year}'),
      output=str(folder / f'index_{year}'),
      progress=False,
    )
  rows = [
    row | {'exclude_passage_ids': [f'p{(i + 3) % 40}', f'newp{(i + 5) % 40}']}
    for i, row in enumerate(tiny.questions()[:24])
  ]
  questions = reading.read_questions(tiny.write_jsonl(folder / 'questions.jsonl', rows))
  world = World(folder, opened, questions, {})
  for year in YEARS:
    with opening.open_evaluator(
      opened, IndexSource(world.index(year)), batch_size=BATCH
    ) as evaluator:
      world.plain[world.index_id(year)] = list(evaluator.predictions(opened.params, questions))
  return world


@pytest.fixture
def server(world):
  """A real process that serves 2018."""
  with LocalRetrievalServer(world.index('2018'), threads=1) as running:
    yield running


def _swap(server, index) -> None:
  assert cli.main(['swap', '--retrieval_address', server.address, '--index', str(index)]) == 0


def _evaluator(world, server, corpus=None, **options):
  return opening.open_evaluator(
    world.opened,
    IndexSource(address=server.address, corpus=corpus, retry_for_s=30),
    **{'batch_size': BATCH, **options},
  )


def test_the_years_differ(world):
  """Or the tests below would show nothing."""
  old, new = (world.plain[world.index_id(year)] for year in YEARS)
  for one, other in zip(old, new):
    assert {p['id'] for p in one['passages']}.isdisjoint(p['id'] for p in other['passages'])
    assert one['log_probability'] != other['log_probability']
  assert [r['metrics'] for r in old] != [r['metrics'] for r in new]


def test_answers_follow(world, server, capsys):
  """What comes after the swap is what the other index alone would give."""
  old, new = (world.plain[world.index_id(year)] for year in YEARS)
  with _evaluator(world, server) as evaluator:
    records = evaluator.predictions(world.opened.params, world.questions)
    found = list(itertools.islice(records, BATCH))
    _swap(server, world.index('2019'))
    found += itertools.islice(records, BATCH)
    _swap(server, world.index('2018'))
    found += records
  assert found == [*old[:BATCH], *new[BATCH : 2 * BATCH], *old[2 * BATCH :]]
  for record, year in ((found[0], '2018'), (found[BATCH], '2019')):
    assert record['index'] == world.index_id(year) and record['generation'] == 1
  shown = capsys.readouterr().out
  assert f'served  {world.index("2018")} (index {world.index_id("2018")})' in shown
  assert (
    f'serves  {world.index("2019")} (index {world.index_id("2019")}, generation 1, 41 passages)'
  ) in shown


def test_a_swap_before_a_batch_s_deeper_search(world, server, monkeypatch):
  """The whole batch is searched anew, its filters by the new corpus's rows."""
  names = [f'{prefix}p{i}' for i in range(34) for prefix in ('', 'new')]
  questions = [
    dataclasses.replace(question, exclude_passage_ids=tuple(names))
    for question in world.questions[:BATCH]
  ]
  with opening.open_evaluator(
    world.opened, IndexSource(world.index('2019')), batch_size=BATCH
  ) as evaluator:
    expected = list(evaluator.predictions(world.opened.params, questions))
  search = RetrievalClient.search
  depths = []

  def search_and_swap(self, queries, k, **options):
    depths.append(k)
    if len(depths) == 2:
      assert self.swap(world.index('2019'))
    return search(self, queries, k, **options)

  with _evaluator(world, server) as evaluator:
    monkeypatch.setattr(RetrievalClient, 'search', search_and_swap)
    found = list(evaluator.predictions(world.opened.params, questions))
  assert found == expected
  assert depths[1] > depths[0] == depths[2] and len(depths) > 3
  for record in found:
    assert 3 == len(record['passages'])
    assert not {p['id'] for p in record['passages']} & set(names)


def test_every_batch_is_of_one_index_through_many_swaps(world, server):
  rounds, records, stop = 4, [], threading.Event()
  swaps = []

  def keep_swapping():
    with RetrievalClient(server.address) as client:
      for year in itertools.cycle(YEARS[::-1]):
        before = len(records)
        swaps.append(client.swap(world.index(year)))
        while len(records) < before + 3 and not stop.is_set():
          stop.wait(0.001)
        if stop.is_set():
          return

  with _evaluator(world, server) as evaluator:
    thread = threading.Thread(target=keep_swapping)
    thread.start()
    try:
      for _ in range(rounds):
        for record in evaluator.predictions(world.opened.params, world.questions):
          records.append(record)
          time.sleep(0.002)  # for swaps to fall anywhere
    finally:
      stop.set()
      thread.join()
  assert len(swaps) > rounds and len({r['index'] for r in records}) == 2
  for i in range(0, len(records), BATCH):
    batch = records[i : i + BATCH]
    (index,) = {record['index'] for record in batch}
    at = i % len(world.questions)
    assert batch == world.plain[index][at : at + BATCH]


def test_ralm_eval_says_which_index_answered(world, server, tmp_path, caplog):
  """The command while it runs, and its file."""
  copies = 30
  rows = [
    json.loads(line) | {'id': f'{i}'}
    for i, line in enumerate((world.folder / 'questions.jsonl').read_text().splitlines() * copies)
  ]
  path = tiny.write_jsonl(tmp_path / 'q.jsonl', rows)
  errors = []

  def evaluate():
    try:
      evaluation.evaluate(
        world.opened.directory,
        EvaluationTask.make(questions=str(path)),
        IndexSource(address=server.address),
        str(tmp_path / 'out'),
        batch_size=BATCH,
      )
    except BaseException as error:
      errors.append(error)
      raise

  thread = threading.Thread(target=evaluate)
  thread.start()
  partial = tmp_path / 'out' / 'predictions.jsonl.partial'
  while thread.is_alive() and not (partial.exists() and partial.stat().st_size):
    time.sleep(0.001)
  _swap(server, world.index('2019'))
  thread.join()
  assert not errors
  found = [
    json.loads(line) for line in (tmp_path / 'out' / 'predictions.jsonl').read_text().splitlines()
  ]
  indexes = [record['index'] for record in found]
  first = indexes.index(world.index_id('2019'))
  assert indexes == [world.index_id('2018')] * first + (
    [world.index_id('2019')] * (len(found) - first)
  )
  assert 0 < first < len(found) and first % BATCH == 0
  (warning,) = [m for m in caplog.messages if 'averages over the answers' in m]
  assert (
    f'{first} from index {world.index_id("2018")}, {len(found) - first} '
    f'from index {world.index_id("2019")}'
  ) in warning
  for i, record in enumerate(found):
    expected = world.plain[record['index']][i % len(world.questions)]
    assert record | {'id': ''} == expected | {'id': ''}


def test_reranked_candidates_follow(world, server):
  """As do what the encoders of now choose among them."""
  options = {'passages': PassageOptions(n_candidates=10, n_passages=3, rerank_chunk=5)}
  questions = world.questions[:BATCH]
  with opening.open_evaluator(
    world.opened, IndexSource(world.index('2019')), batch_size=BATCH, **options
  ) as evaluator:
    expected = list(evaluator.predictions(world.opened.params, questions))
  with _evaluator(world, server, **options) as evaluator:
    list(evaluator.predictions(world.opened.params, questions))
    _swap(server, world.index('2019'))
    assert list(evaluator.predictions(world.opened.params, questions)) == expected


@pytest.mark.parametrize('breaking', ['missing', 'truncated', 'dimension'])
def test_what_cannot_be_served_changes_nothing(world, server, tmp_path, capsys, breaking):
  broken = tmp_path / 'broken'
  if breaking == 'truncated':
    shutil.copytree(world.index('2019'), broken)
    path = broken / 'generation-00000001' / 'embeddings.float16'
    path.write_bytes(path.read_bytes()[:-2])
  elif breaking == 'dimension':
    with generation_writer.begin(GenerationStore(broken), IndexOptions(), 4) as writer:
      writer.append(None, np.eye(4))
      writer.commit()
  old = world.plain[world.index_id('2018')]
  with _evaluator(world, server) as evaluator:
    records = evaluator.predictions(world.opened.params, world.questions[:16])
    found = list(itertools.islice(records, BATCH))
    assert cli.main(['swap', '--retrieval_address', server.address, '--index', str(broken)]) == 1
    found += records
  assert found == old[:16]
  (error,) = [
    line for line in capsys.readouterr().err.splitlines() if line.startswith('ralm swap: error: ')
  ]
  assert str(broken) in error
  assert {'missing': 'holds no index', 'truncated': 'expected', 'dimension': 'dimension 4'}[
    breaking
  ] in error


def _copy_of_2019(world, folder) -> pathlib.Path:
  """Index and corpus, which belong together by their relative places.

  The index is one of its own, that may change.
  """
  shutil.copytree(world.index('2019'), folder / 'index_2019')
  (folder / 'index_2019' / 'INDEX_ID').unlink()
  shutil.copytree(world.corpus('2019'), folder / 'corpus_2019')
  return folder / 'index_2019'


def test_an_index_that_was_moved_with_its_corpus(world, server, tmp_path):
  moved = _copy_of_2019(world, tmp_path)
  with _evaluator(world, server) as evaluator:
    list(evaluator.predictions(world.opened.params, world.questions[:1]))
    _swap(server, moved)
    evaluator.answer(world.opened.params, ['which?'])
    assert evaluator.store.directory == tmp_path / 'corpus_2019'


def _rename_corpus(index, name) -> None:
  """Has an index say that its corpus is elsewhere."""
  path = index / 'generation-00000001' / 'manifest.json'
  fields = json.loads(path.read_text())
  fields['metadata'] |= {'corpus': str(name), 'corpus_relative': str(name)}
  path.write_text(json.dumps(fields))


def test_a_corpus_that_is_not_there(world, server, tmp_path):
  """One clear error; what is served next is followed again."""
  lost = _copy_of_2019(world, tmp_path)
  _rename_corpus(lost, tmp_path / 'nowhere')
  with _evaluator(world, server) as evaluator:
    answer = lambda: evaluator.answer(world.opened.params, world.questions[:1])
    before = answer()
    _swap(server, lost)
    for _ in range(2):
      with pytest.raises(FileNotFoundError, match='nowhere'):
        answer()
    _swap(server, world.index('2018'))
    assert answer() == before


def test_a_corpus_that_the_user_names(world, server, tmp_path):
  """It is used for the indexes that it fits, and for no other."""
  lost = _copy_of_2019(world, tmp_path)
  _rename_corpus(lost, tmp_path / 'nowhere')
  _swap(server, lost)
  with _evaluator(world, server, corpus=world.corpus('2019')) as evaluator:
    answer = lambda: evaluator.answer(world.opened.params, world.questions[:1])
    (first,) = answer()
    _swap(server, world.index('2018'))
    (second,) = answer()
    _swap(server, lost)
    assert answer() == [first]
  assert {p.passage.id[:3] for p in first.passages} == {'new'}
  assert [p.passage.id for p in second.passages] == [
    p['id'] for p in world.plain[world.index_id('2018')][0]['passages']
  ]


def test_a_corpus_of_other_vocabularies(world, server, tmp_path):
  trained = tiny.trained()
  vocabulary = tmp_path / 'vocab.txt'
  vocabulary.write_text(trained.data.retriever_vocabulary.read_text() + 'additional\n')
  store = passage_store.build_corpus(
    world.folder / '2019.jsonl',
    tmp_path / 'corpus',
    trained.data.reader_vocabulary,
    vocabulary,
    n_workers=1,
    progress=False,
  )
  with generation_writer.begin(
    GenerationStore(tmp_path / 'index'),
    IndexOptions(),
    16,
    {'corpus': str(store.directory), 'corpus_fingerprint': store.fingerprint},
  ) as writer:
    writer.append(None, np.eye(len(store), 16))
    writer.commit()
  with _evaluator(world, server) as evaluator:
    answer = lambda: evaluator.answer(world.opened.params, world.questions[:1])
    before = answer()
    _swap(server, tmp_path / 'index')
    for _ in range(2):
      with pytest.raises(ValueError, match='with another retriever vocabulary'):
        answer()
    _swap(server, world.index('2018'))
    assert answer() == before


def test_another_process_at_the_address(world, tmp_path):
  """A started process serves its own flags' index, which is followed too."""
  small = tmp_path / 'small'
  store = PassageStore.open(world.corpus('2018'))
  with generation_writer.begin(
    GenerationStore(small),
    IndexOptions(),
    4,
    {'corpus': str(store.directory), 'corpus_fingerprint': store.fingerprint},
  ) as writer:
    writer.append(None, np.eye(len(store), 4))
    writer.commit()
  with RetrievalServer(world.index('2018'), 'localhost:0') as first:
    address = first.address
    evaluator = _evaluator(world, first)
    running = evaluator.__enter__()
    answer = lambda: running.answer(world.opened.params, world.questions[:1])[0]
    assert answer().index_id == world.index_id('2018')
  with RetrievalServer(world.index('2019'), address):
    assert answer().index_id == world.index_id('2019')
  with RetrievalServer(small, address):
    with pytest.raises(ValueError, match='embeddings of size 4.*of size 16'):
      answer()
  evaluator.__exit__(None, None, None)


def test_a_retriever_of_one_generation_cannot_follow(world, server):
  with connect.connect(IndexSource(address=server.address), follow_swaps=True) as connected:
    with pytest.raises(ValueError, match='Generation 1 means nothing'):
      PassageRetriever(
        connected.client, connected.store, 3, generation=1, open_corpus=connected.open_corpus
      )


def test_training_does_not_follow(world, server):
  """What a run connects with is of one index: searches, refreshes, pins."""
  params, spec = world.opened.params, world.opened.spec
  with connect.connect(IndexSource(address=server.address)) as connected:
    retriever = PassageRetriever(connected.client, connected.store, 3, generation=1)
    publisher = IndexPublisher(
      connected.client,
      spec.model,
      world.opened.partitioner,
      Assembler(spec.tokenizer, connected.store),
      batch_size=16,
      progress=False,
    )
    queries = np.ones((2, 16), np.float32)
    before = retriever.search(queries)
    assert before.index_id == world.index_id('2018')
    _swap(server, world.index('2019'))
    changed = {'retriever': jax.tree.map(lambda x: x + 1, params['retriever'])}
    for call in (
      lambda: retriever.search(queries),
      lambda: publisher.publish(changed, 'a key', run='run', step=1),
      lambda: connected.client.pin('run', [1]),
    ):
      with pytest.raises(IndexSwappedError, match='index_2019.*ralm swap'):
        call()
    other = GenerationStore(world.index('2019'))
    assert other.numbers() == [1] and not other.pinned()
    _swap(server, world.index('2018'))
    np.testing.assert_array_equal(retriever.search(queries).rows, before.rows)


@pytest.mark.slow
def test_a_training_run_stops_with_one_error(world, tmp_path):
  """And goes on from its last checkpoint when its own index is served again."""
  own = _copy_of_2019(world, tmp_path)
  run = tmp_path / 'run'
  with LocalRetrievalServer(own, threads=1) as server:
    job = {
      'data': str(tiny.trained().data.folder),
      'model_dir': str(run),
      'retrieval': {'address': server.address, 'corpus': str(tmp_path / 'corpus_2019')},
    }
    started = tiny.start(tmp_path / 'log', [job | {'steps': 100_000}])
    while started.popen.poll() is None and not (run / 'checkpoint_2').exists():
      time.sleep(0.01)
    _swap(server, world.index('2018'))
    output = started.finish(status=1)
    assert output.count('error: ') == 1 and 'Traceback' not in output
    assert f'serves {world.index("2018")} (id {world.index_id("2018")}) now' in output
    assert not GenerationStore(world.index('2018')).pinned()
    # Its generation has the number of the run's own.
    refused = tiny.start(
      tmp_path / 'refused',
      [job | {'steps': 100_000, 'retrieval': {'address': server.address, 'corpus': None}}],
    )
    assert 'The checkpoint was made with the index' in refused.finish(status=1)
    _swap(server, own)
    last = max(int(path.name.split('_')[1]) for path in run.glob('checkpoint_*'))
    output = tiny.start(tmp_path / 'again', [job | {'steps': last + 2}]).finish()
    assert f'Resumed from checkpoint_{last}' in output


def test_a_live_edit_stays_with_its_index(world, server, tmp_path, monkeypatch):
  """A swap amid `ralm add` must not put one corpus's rows into another's index."""
  own = _copy_of_2019(world, tmp_path)
  _swap(server, own)
  embed = live_edits._embed

  def embed_and_swap(*arguments):
    _swap(server, world.index('2018'))
    return embed(*arguments)

  monkeypatch.setattr(live_edits, '_embed', embed_and_swap)
  with pytest.raises(IndexSwappedError):
    live_edits.put(
      [Passage('added', 'Zembla', '', 'A lake.')],
      checkpoint=world.opened.directory,
      retrieval_address=server.address,
    )
  for index in (own, world.index('2018')):
    assert GenerationStore(index).edit_log().last == 0


def test_swap_warns_of_runs_that_have_pinned(world, tmp_path, caplog):
  own = _copy_of_2019(world, tmp_path)
  with LocalRetrievalServer(own, threads=1) as server:
    with RetrievalClient(server.address) as client:
      client.pin('/runs/long', [1])
    _swap(server, world.index('2018'))
  assert '/runs/long' in caplog.text


class _Typed(io.StringIO):
  """Lines as they are typed; some do something else first."""

  def __init__(self, lines):
    super().__init__()
    self._lines = iter(lines)

  def __next__(self):
    line = next(self._lines)
    return line if isinstance(line, str) else line()


def test_a_session_of_questions(world, server, tmp_path, monkeypatch, capsys):
  """`ralm ask` without a question: one a line, from what is served just then."""
  question = world.questions[0].question
  lost = _copy_of_2019(world, tmp_path)
  _rename_corpus(lost, tmp_path / 'nowhere')

  def after(index):
    def line():
      print('---')
      _swap(server, index)
      return question + '\n'

    return line

  monkeypatch.setattr(
    'sys.stdin',
    _Typed(
      [question + '\n', '\n', after(world.index('2019')), after(lost), after(world.index('2018'))]
    ),
  )
  assert (
    cli.main(['ask', '--checkpoint', world.opened.directory, '--retrieval_address', server.address])
    == 1
  )
  said = capsys.readouterr()
  first, second, third, fourth = said.out.split('---\n')
  second, fourth = (part.split('passages)\n')[1] for part in (second, fourth))
  assert first == fourth and first.startswith('answer: ')
  assert first.count('[p') == 3 and second.count('[newp') == 3
  assert f'from generation 1 of index {world.index_id("2018")}' in first
  assert f'from generation 1 of index {world.index_id("2019")}' in second
  assert 'answer:' not in third
  assert said.err.count('nowhere') == 1
  assert '1 of 4 questions were not answered' in said.err


def test_a_session_that_answers_all(world, server, monkeypatch, capsys):
  monkeypatch.setattr('sys.stdin', io.StringIO('which?\n'))
  assert (
    ask.ask_lines(
      [' ', 'what?\n'],
      checkpoint=world.opened.directory,
      source=IndexSource(address=server.address),
    )
    == 1
  )
  assert (
    cli.main(['ask', '--checkpoint', world.opened.directory, '--retrieval_address', server.address])
    == 0
  )
  assert capsys.readouterr().out.count('answer: ') == 2
