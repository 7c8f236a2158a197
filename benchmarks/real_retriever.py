"""Recall of a retriever with real weights: a sentence-transformers folder.

  ralm corpus --input 'passages/*.jsonl' --output CORPUS --max_words 200 \
    --reader_vocabulary spiece.model --retriever_vocabulary FOLDER/vocab.txt
  python benchmarks/real_retriever.py --model FOLDER --corpus CORPUS \
    --questions dev.jsonl

Loads the folder with our loader, checks its embeddings of the first passages
and questions against PyTorch's, embeds the corpus and searches it exactly.
Recall is by answer string and by gold passage; any part of a passage that was
cut counts as that passage. `benchmarks/bm25.py` on the same passages and
questions is the peer.
"""

import argparse
import os
import time

import faiss
import jax
import numpy as np
import tqdm

from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.questions import reading
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.evaluation import metrics
from ralm_jax.evaluation.scores import retrieval
from ralm_jax.interop import huggingface
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.embedding import PassageEmbedder
from ralm_jax.training.partitioning import Partitioner

KS = (1, 5, 20)


def peer_embeddings(
  folder: str, tokens: np.ndarray, mask: np.ndarray, pooling: str, normalize: bool
) -> np.ndarray:
  """The same embeddings by PyTorch: [n, length] -> float32 [n, dim]."""
  import torch
  import transformers

  model = transformers.AutoModel.from_pretrained(folder).eval()
  with torch.no_grad():
    hidden = model(
      input_ids=torch.tensor(tokens, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long),
    ).last_hidden_state
    weights = torch.tensor(mask, dtype=hidden.dtype)[..., None]
    pooled = hidden[:, 0] if pooling == 'cls' else ((hidden * weights).sum(1) / weights.sum(1))
    if normalize:
      pooled = torch.nn.functional.normalize(pooled, dim=-1)
  return pooled.numpy()


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--model', required=True, help='sentence-transformers folder')
  parser.add_argument('--corpus', required=True)
  parser.add_argument('--questions', nargs='+', required=True)
  parser.add_argument('--passage_length', type=int, default=256)
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--max_passages', type=int, help='only the first so many')
  parser.add_argument('--name', default='real_retriever', help='of the result file')
  arguments = parser.parse_args()

  loaded = huggingface.open_sentence_transformer(arguments.model)
  model = RetrievalLM(
    retriever_config=loaded.config, pooling=loaded.pooling, normalize_embeddings=loaded.normalize
  )
  params = {'retriever': loaded.read()}
  store = PassageStore.open(arguments.corpus)
  tokenizer = QueryTokenizer(
    TextConfig(
      question_format='{question}',
      query_length=64,
      retriever_passage_length=arguments.passage_length,
    ),
    store.reader_vocabulary,
    store.retriever_vocabulary,
  )
  assembler = Assembler(tokenizer, store)
  partitioner = Partitioner()
  embedder = PassageEmbedder(model, partitioner, assembler, batch_size=arguments.batch_size)

  inputs = assembler.passage_inputs(np.arange(16))
  ours = embedder.embed(params, np.arange(16))
  theirs = peer_embeddings(
    arguments.model, inputs.tokens[:, 0], inputs.mask[:, 0], loaded.pooling, loaded.normalize
  )
  difference = float(np.abs(ours - theirs).max())
  print(f'largest difference to PyTorch on 16 passages: {difference:.1e}')
  if difference > 1e-4:
    raise SystemExit('the embeddings differ from those of PyTorch')

  questions = reading.read_questions(
    arguments.questions, require_answers=False, duplicate_ids='number'
  )
  count = min(len(store), arguments.max_passages or len(store))
  started = time.perf_counter()
  parts = np.array_split(np.arange(count), max(1, count // 512))
  index = faiss.IndexFlatIP(ours.shape[1])
  for part in tqdm.tqdm(embedder.stream(params, parts), total=len(parts), desc='embedding'):
    index.add(part)
  embed_seconds = time.perf_counter() - started

  encode = partitioner.partition_rows(model.encode_queries)
  ranks: dict[str, list[float | None]] = {'answer': [], 'gold': []}
  for first in tqdm.tqdm(range(0, len(questions), 64), desc='questions'):
    some = questions[first : first + 64]
    batch = tokenizer.batch([q.question for q in some], size=64)
    mask = batch.query_tokens != store.retriever_vocabulary.pad_id
    embeddings = np.asarray(encode(params, *partitioner.put_batch((batch.query_tokens, mask))))
    _, rows = index.search(embeddings[: len(some)], max(KS))
    for question, found in zip(some, rows):
      passages = store.passages(found)
      rank = retrieval.rank_passages(
        [f'{p.title} {p.text}' for p in passages],
        [p.id if p.id in question.gold_passage_ids else p.source_id for p in passages],
        question.answers,
        question.gold_passage_ids,
      )
      ranks['answer'].append(rank.answer)
      ranks['gold'].append(rank.gold)

  fields = dict(
    model=os.path.basename(os.path.normpath(arguments.model)),
    difference_to_torch=difference,
    passages=count,
    passage_length=arguments.passage_length,
    questions=len(questions),
    question_files=[os.path.basename(p) for p in arguments.questions],
    embed_seconds=round(embed_seconds, 1),
    device=str(jax.devices()[0].platform),
  )
  for kind, values in ranks.items():
    means = metrics.mean_metrics([retrieval.rank_metrics(r, max(KS), KS, kind) for r in values])
    recall = {k: means.get(f'recall@{k}_{kind}') for k in KS}
    if recall[KS[0]] is not None:
      fields |= {f'recall@{k}_{kind}': round(recall[k], 4) for k in KS}
      print(f'by {kind:<7}' + ''.join(f'  recall@{k} {recall[k]:.1%}' for k in KS))
  from reporting import write_result  # Beside this file.

  print('written to', write_result(arguments.name, fields))


if __name__ == '__main__':
  main()
