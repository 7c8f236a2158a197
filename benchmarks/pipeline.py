"""Examples a second of the training stream, on one core.

  python benchmarks/pipeline.py --passages 'passages/*.jsonl' \
      --questions questions.jsonl \
      --reader_vocabulary spiece.model --retriever_vocabulary vocab.txt

Each task is read as a training run reads it: seqio task, shuffling, padding,
batches as NumPy arrays with the rows of what they exclude. Peers make the same
arrays of the same passages by tokenising text each time, on no more than this
core: for masked spans as Atlas does (tokenise, corrupt, write as text, tokenise
for both models), for questions and prefixes both models' tokenisers; and seqio
with its own vocabulary, which tokenises for the reader alone. Rates are of
processor time, which other programs on the machine do not count into, after an
epoch to warm up.
"""

import argparse
import json
import os
import tempfile
import time

import timing  # Beside this file.

timing.use_cores(1)  # Before TensorFlow starts its threads.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import numpy as np
import sentencepiece
import tokenizers

from ralm_jax.data import pipeline
from ralm_jax.data.corpus import passage_store
from ralm_jax.data.pipeline import DatasetConfig
from ralm_jax.data.pretext import noise, objectives
from ralm_jax.data.pretext.noise import NoiseConfig
from ralm_jax.data.pretext.objectives import MaskedSpans, PrefixLM, SalientSpans, TitleSection
from ralm_jax.data.text_config import TextConfig
from ralm_jax.tasks import language_modeling, qa


def stream(task: str, store, lengths, batch_size: int):
  """Batches of a task, forever."""
  iterator = pipeline.get_dataset_iterator(DatasetConfig(task, batch_size=batch_size), lengths)
  iterator.use_corpus(store)
  return iterator


def rate(iterator, warm_up: int, examples: int, batch_size: int) -> dict:
  """Examples a second of processor time and of the clock."""
  for _ in range(-(-warm_up // batch_size)):
    next(iterator)
  start, cpu = time.perf_counter(), time.process_time()
  batches = -(-examples // batch_size)
  for _ in range(batches):
    next(iterator)
  return {
    'per_core': batches * batch_size / (time.process_time() - cpu),
    'wall': batches * batch_size / (time.perf_counter() - start),
  }


class TokenisingPeer:
  """Arrays from texts, tokenised each time, without TensorFlow."""

  def __init__(self, args, text):
    self.text = text
    self.reader = sentencepiece.SentencePieceProcessor(model_file=args.reader_vocabulary)
    self.retriever = tokenizers.BertWordPieceTokenizer(args.retriever_vocabulary, lowercase=True)
    self.config = NoiseConfig()
    self.sentinels = np.arange(32099, 31999, -1)

  def encode(self, text: str) -> list[int]:
    """T5's ids with sentinels, as a T5 tokeniser reads them."""
    ids = []
    for number, part in enumerate(text.split('<extra_id_')):
      if number:
        index, _, part = part.partition('>')
        ids.append(32099 - int(index))
      ids += self.reader.encode(part)
    return ids

  def decode(self, ids) -> str:
    """A text with sentinels in it."""
    runs, run = [], []
    for token in ids.tolist():
      if token > 31999:
        runs += [self.reader.decode(run), f'<extra_id_{32099 - token}>']
        run = []
      else:
        run.append(token)
    return ' '.join([*runs, self.reader.decode(run)])

  def arrays(self, queries, targets):
    """Padded query, reader query and target of a batch."""
    text = self.text

    def pad(rows, length):
      result = np.zeros((len(rows), length), np.int32)
      for row, ids in zip(result, rows):
        row[: len(ids)] = ids[:length]
      return result

    return (
      pad([self.retriever.encode(q).ids for q in queries], text.query_length),
      pad([self.encode(q) for q in queries], text.reader_query_length),
      pad([[*self.encode(t), 1] for t in targets], text.target_length),
    )

  def masked(self, text: str, generator) -> tuple[str, str]:
    """Query and target of a passage, as texts."""
    tokens = np.array(self.reader.encode(text))[: self.text.reader_query_length]
    made = noise.corrupt(
      tokens, noise.random_spans(len(tokens), self.config, generator), self.sentinels
    )
    return self.decode(made.inputs), self.decode(made.targets)

  def batches(self, kind: str, rows, batch_size: int):
    """Batches of passages (texts) or of questions, forever."""
    generator = np.random.default_rng(0)
    while True:
      order = generator.permutation(len(rows))
      for start in range(0, len(rows) - batch_size + 1, batch_size):
        chosen = [rows[i] for i in order[start : start + batch_size]]
        if kind == 'masked_spans':
          pairs = [self.masked(text, generator) for text in chosen]
        elif kind == 'prefix_lm':
          halves = [(text.split(), text) for text in chosen]
          pairs = [
            (' '.join(words[: len(words) // 2]), ' '.join(words[len(words) // 2 :]))
            for words, _ in halves
          ]
        else:
          pairs = [(self.text.query(q), self.text.target(a)) for q, a in chosen]
        yield self.arrays(*zip(*pairs))


def seqio_batches(texts, path: str, length: int, batch_size: int):
  """seqio's tokenisation of the same texts for the reader, padded."""
  import seqio
  import tensorflow as tf

  vocabulary = seqio.SentencePieceVocabulary(path, extra_ids=100)
  dataset = tf.data.Dataset.from_tensor_slices({'targets': texts}).repeat()
  dataset = seqio.preprocessors.tokenize(
    dataset, {'targets': seqio.Feature(vocabulary)}, copy_pretokenized=False
  )
  dataset = dataset.map(
    lambda e: tf.pad(
      e['targets'][:length], [(0, length - tf.minimum(length, tf.size(e['targets'])))]
    ),
    num_parallel_calls=tf.data.AUTOTUNE,
  )
  return iter(dataset.batch(batch_size).prefetch(2).as_numpy_iterator())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--passages', nargs='+', required=True)
  parser.add_argument('--questions', required=True)
  parser.add_argument('--reader_vocabulary', required=True)
  parser.add_argument('--retriever_vocabulary', required=True)
  parser.add_argument('--max_words', type=int, default=100)
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--n_examples', type=int, default=6400)
  args = parser.parse_args()

  text = TextConfig(query_length=256, reader_query_length=256, target_length=64)
  lengths = {'query': 256, 'reader_query': 256, 'targets': 64}
  with tempfile.TemporaryDirectory() as folder:
    store = passage_store.build_corpus(
      args.passages,
      folder,
      args.reader_vocabulary,
      args.retriever_vocabulary,
      max_words=args.max_words,
      n_workers=1,
      progress=False,
    )
    tasks = {}
    for name, objective in (
      ('masked_spans', MaskedSpans()),
      ('prefix_lm', PrefixLM(0.25, 0.75)),
      ('title_section', TitleSection()),
      ('salient_spans', SalientSpans()),
    ):
      tasks[name] = language_modeling.passage_task(
        f'pipeline_{name}', corpus=store, objective=objective, text=text
      )
    questions = qa.jsonl_task(
      'pipeline_questions',
      train=args.questions,
      text=TextConfig(),
      reader_vocabulary=store.reader_vocabulary,
      retriever_vocabulary=store.retriever_vocabulary,
      require_answers=False,
    )
    result = {}
    for name, task in tasks.items():
      result[name] = rate(
        stream(task, store, lengths, args.batch_size),
        min(len(store), 40_000),
        args.n_examples,
        args.batch_size,
      )
      report(name, result[name])
    short = {'query': 64, 'reader_query': 64, 'targets': 32}
    result['questions'] = rate(
      stream(questions, store, short, args.batch_size), 2000, args.n_examples, args.batch_size
    )
    report('questions', result['questions'])

    texts = [
      p.text for p in store.passages(np.arange(len(store))) if objectives.word_count(p.text) >= 10
    ]
    with open(args.questions, encoding='utf-8') as file:
      rows = [json.loads(line) for line in file]
    pairs = [(row['question'], row['answers'][0]) for row in rows if row['answers']]
    peer, short_peer = (TokenisingPeer(args, config) for config in (text, TextConfig()))
    peers = {
      'masked_spans': peer.batches('masked_spans', texts, args.batch_size),
      'prefix_lm': peer.batches('prefix_lm', texts, args.batch_size),
      'questions': short_peer.batches('questions', pairs, args.batch_size),
      'seqio_reader_tokens': seqio_batches(texts, args.reader_vocabulary, 256, args.batch_size),
    }
    found = {}
    for name, batches in peers.items():
      found[name] = rate(batches, 640, args.n_examples, args.batch_size)
      report(f'{name}, tokenising text', found[name])
    tokens = store.tokens(np.arange(len(store)), 'reader_text').lengths

  from reporting import write_result  # Beside this file.

  print(
    'written to',
    write_result(
      'pipeline',
      {
        'cores_used': 1,
        'batch_size': args.batch_size,
        'lengths': lengths,
        'corpus_passages': len(store),
        'mean_reader_tokens': float(tokens.mean()),
        'examples_per_second': result,
        'tokenising_examples_per_second': found,
      },
    ),
  )


def report(name: str, found: dict) -> None:
  print(
    f'{name:35s} {found["per_core"]:8,.0f} examples/s a core {found["wall"]:8,.0f} on the clock',
    flush=True,
  )


if __name__ == '__main__':
  main()
