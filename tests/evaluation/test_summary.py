"""What is said of numbers: their denominators, and what they are not of."""

import json

import numpy as np
import pytest

from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import StoredPassage
from ralm_jax.data.questions import reading
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation import kilt_predictions, prediction_files, records, summary
from ralm_jax.evaluation.evaluator import Evaluator
from ralm_jax.evaluation.kilt_predictions import PageOptions
from ralm_jax.evaluation.records import Answer, AnsweredPassage
from ralm_jax.evaluation.scores import kilt
from ralm_jax.retrieval.retriever import PassageRetriever
from ralm_jax.runs import opening
from tests import tiny
from tests.evaluation.test_evaluator import Search


def _question(number, **fields):
  values = {'answers': ('Lyon',), 'gold_passage_ids': ()}
  return Question(**{'id': str(number), 'question': 'which city', 'line': 1, **values, **fields})


def _passage(name, text='a fair in Lyon', read=None, document=''):
  stored = StoredPassage(id=name, title='T', section='', text=text, document=document, row=0)
  return AnsweredPassage(stored, 1.0, 1.0, text_read=read)


def _record(question, passages=(), pages=PageOptions(), metrics='qa', **fields):
  answer = Answer('Lyon', -1.0, tuple(passages), len(passages), **fields)
  return records.prediction_record(question, answer, metrics, pages)


def _summarized(rows, metrics='qa'):
  return summary.summarize([summary.counted(row) for row in rows], metrics)


def test_averages_over_a_part_say_of_how_many():
  rows = [
    _record(_question(0, gold_passage_ids=('p',), group='2017'), [_passage('p')]),
    _record(_question(1, group='2017'), [_passage('q')]),
    _record(_question(2, answers=(), group='2020'), [_passage('q')]),
    _record(_question(3, gold_passage_ids=('p',), group='2020'), [_passage('q')]),
  ]
  means = _summarized(rows)
  assert means['recall@1_gold'] == 1 / 2 and means['exact_match'] == 1
  over = means['averaged_over']
  # As counted by hand: gold ids of two, answers of three.
  assert over['recall@1_gold'] == over['mrr_gold'] == 2
  assert over['exact_match'] == over['f1'] == over['recall@1_answer'] == 3
  assert means['groups']['2017']['averaged_over'] == {'recall@1_gold': 1, 'mrr_gold': 1}
  assert means['groups']['2020']['averaged_over']['exact_match'] == 1
  shown = {name: note for name, _, note in summary.numbers(means)}
  assert shown['recall@1_gold'] == ' (over 2 of 4)'
  assert summary.notes(means) == ['1 of 4 questions have no answer and are scored by none']
  whole = _summarized(rows[:1])
  assert 'averaged_over' not in whole and 'noted' not in whole
  # Where nobody knows answers, that is no news.
  assert summary.notes(_summarized(rows[2:3])) == []


def test_an_answer_that_was_cut_off_is_not_found():
  text = '最初の部分。東京'
  question = _question(0, answers=('Lyon', '東京'))
  for read, found in ((None, 1), (len(text), 1), (6, 0), (0, 0)):
    record = _record(question, [_passage('p', text, read)])
    assert record['metrics']['recall@1_answer'] == found
    assert record['passages'][0].get('characters_read') == read
  means = _summarized([_record(question, [_passage('p', text, 6), _passage('q')])])
  assert means['noted'] == {'passages_cut': 1, 'passages': 2}
  assert '1 of 2 passages were cut' in summary.notes(means)[0]


@pytest.mark.parametrize(
  'pages, ids, documents, expected',
  [
    (PageOptions(), ['290', '7'], ['', ''], ['290', '7']),
    (PageOptions(), ['wiki:0', 'wiki:1'], ['', ''], ['wiki:0', 'wiki:1']),
    (PageOptions(), ['a', 'b'], ['290', '7'], ['290', '7']),
    (PageOptions('id', '_'), ['290_3', '7_0'], ['x', 'y'], ['290', '7']),
    (PageOptions('title'), ['290', '7'], ['x', 'y'], ['T', 'T']),
  ],
)
def test_pages_are_what_the_user_names(pages, ids, documents, expected, tmp_path):
  """In records as by independent arithmetic, and in KILT's file as in records."""
  gold = (('290',), ('wiki:1', '7'))
  question = _question(0, provenance=gold)
  shown = [_passage(name, document=document) for name, document in zip(ids, documents)]
  record = _record(question, shown, pages, 'kilt')
  assert [passage['page'] for passage in record['passages']] == expected
  best = max(len(set(one) & set(expected[: len(one)])) / len(one) for one in gold)
  assert record['metrics']['r_precision'] == best
  assert record['metrics']['kilt_exact_match'] == float(best == 1)
  # A question's text is that of one written to a file.
  assert pages.page_of(json.loads(json.dumps(record))['passages'][0]) == expected[0]


def test_pages_that_no_passage_has(caplog, tmp_path):
  """All KILT scores are 0 for another reason than the model."""
  rows = [
    _record(_question(i, provenance=(('290',),)), [_passage('wiki:0_3')], metrics='kilt')
    for i in range(3)
  ]
  means = prediction_files.write(lambda done=0: iter(rows), tmp_path, metrics='kilt')
  assert means['r_precision'] == 0 and means['noted']['unknown_pages'] == 3
  assert "provenance of the 3 questions names (found: 'wiki:0_3', named: '290')" in caplog.text
  assert '--page_separators' in caplog.text
  caplog.clear()
  for separators, said in (('', True), ('_', True), (':', False)):
    pages = PageOptions(page_separators=separators)
    path = tmp_path / 'predictions.jsonl'
    path.write_text(path.read_text().replace('"290"', '"wiki"'))
    kilt_predictions.write(path, tmp_path / 'k.jsonl', record_format='kilt_nq', pages=pages)
    assert bool(caplog.messages) is said
    caplog.clear()
  # One page that is found is enough: the rest are misses.
  rows.append(_record(_question(9, provenance=(('8',),)), [_passage('290')], metrics='kilt'))
  assert 'noted' not in _summarized(rows, 'kilt')
  assert kilt.provenance_metrics(['290'], [('8',)])['r_precision'] == 0


def test_no_file_holds_what_is_no_json(tmp_path, caplog):
  rows = [_record(_question(i), loss=loss) for i, loss in enumerate((1.0, float('nan'), 3.0))]
  rows[1]['log_probability'] = -float('inf')
  means = prediction_files.write(lambda done=0: iter(rows), tmp_path)
  assert means['loss'] == 2.0 and means['averaged_over'] == {'loss': 2}
  assert (
    '1 metrics are not finite and are left out of the averages, such as loss of 1' in caplog.text
  )
  for name in ('predictions.jsonl', 'metrics.json'):
    assert not {'NaN', 'Infinity'} & set((tmp_path / name).read_text().replace(',', ' ').split())
  read = prediction_files.read(tmp_path / 'predictions.jsonl')
  assert np.mean([row['metrics']['loss'] for row in read if row['metrics']['loss']]) == 2.0


def test_what_an_evaluation_notes(tmp_path, caplog):
  """Gold ids that the corpus lacks, a passage, a query and a question that are cut."""
  trained = tiny.trained()
  opened = opening.open_checkpoint(trained.run)
  filler = ' '.join(['red'] * 500)
  rows = [{'id': 'long', 'title': 't', 'text': f'{filler} blue'}, {'id': 's', 'text': 'blue'}]
  store = passage_store.build_corpus(
    tiny.write_jsonl(tmp_path / 'p.jsonl', rows),
    tmp_path / 'corpus',
    trained.data.reader_vocabulary,
    trained.data.retriever_vocabulary,
    n_workers=1,
    progress=False,
  )
  asked = [
    {'question': 'which?', 'answers': ['blue'], 'gold_passage_ids': ['wiki:0']},
    {'question': 'which?', 'answers': ['blue'], 'gold_passage_ids': ['long', 'wiki:1']},
    {'question': filler, 'answers': ['red'], 'gold_passage_ids': ['s']},
  ]
  questions = reading.read_questions(tiny.write_jsonl(tmp_path / 'q.jsonl', asked))
  retriever = PassageRetriever(Search([0, 1], store), store, 2)
  evaluator = Evaluator(opened.spec, opened.partitioner, retriever, batch_size=2)
  means = evaluator.evaluate(opened.params, questions, output=tmp_path / 'out')
  found = prediction_files.read(tmp_path / 'out' / 'predictions.jsonl')
  assert [row.get('unknown_gold_ids') for row in found] == [['wiki:0'], ['wiki:1'], None]
  assert [row.get('cut') for row in found] == [None, None, ['query', 'question']]
  # 'blue' is behind what is read of the first passage.
  assert [row['metrics']['mrr_answer'] for row in found] == [0.5, 0.5, 1.0]
  assert [row['metrics']['mrr_gold'] for row in found] == [0.0, 1.0, 0.5]
  read = found[0]['passages'][0]['characters_read']
  vocabulary, text = opened.spec.tokenizer.reader_vocabulary, opened.spec.tokenizer.text
  rendered = vocabulary.encode(f'which? title: t context: {rows[0]["text"][:read]}')
  assert text.passage_length - 2 < len(rendered) + 1 <= text.passage_length
  assert means['noted']['passages_cut'] == 3 and means['noted']['queries_cut'] == 1
  for note in ('2 of 3 questions name gold', '3 of 6 passages were cut', '1 of 3 queries'):
    assert note in caplog.text
