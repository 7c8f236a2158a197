"""Where the publishers keep the files of each benchmark.

Checksums and sizes are those that TensorFlow Datasets and Hugging Face Datasets
recorded of the same addresses; None where nobody did.
"""

from __future__ import annotations

import dataclasses
import re

_NQ = 'https://raw.githubusercontent.com/google-research-datasets/natural-questions/a7a113c9fdc2d9986d624bd43b8a18d6d5779eaa/nq_open/'
_TRIVIAQA = 'http://nlp.cs.washington.edu/triviaqa/data/'
_CODALAB = 'https://worksheets.codalab.org/rest/bundles/'
_BRMSON = 'https://raw.githubusercontent.com/brmson/dataset-factoid-curated/master/'
_FEVER = 'https://fever.ai/download/fever/'
_SYMMETRIC = 'https://raw.githubusercontent.com/TalSchuster/FeverSymmetric/master/'
_KILT = 'http://dl.fbaipublicfiles.com/KILT/'
_MS_MARCO = (
  'https://msmarco.z22.web.core.windows.net/msmarco/',
  'https://msmarco.blob.core.windows.net/msmarco/',
)
_TEMPLAMA = 'https://storage.googleapis.com/gresearch/templama/'
_WIKITEXT = (
  'https://wikitext.smerity.com/',
  'https://s3.amazonaws.com/research.metamind.io/wikitext/',
)


@dataclasses.dataclass(frozen=True)
class Source:
  """A file as its publisher offers it."""

  name: str
  addresses: tuple[str, ...]
  sha256: str | None = None  # Hexadecimal; None where none is known.
  size: int | None = None  # In bytes; None where it is not known.
  optional: bool = False  # Whether the benchmark can be prepared without it.


def _at(bases: str | tuple[str, ...], name: str, sha256: str = '', size: str = '') -> Source:
  """A source that is called the same on both sides."""
  addresses = tuple(base + name for base in ((bases,) if isinstance(bases, str) else bases))
  return Source(name.rpartition('/')[2], addresses, sha256 or None, int(size) if size else None)


def _listed(bases: str | tuple[str, ...], text: str) -> tuple[Source, ...]:
  """Sources of a list: SHA-256, size and name in a line, with a question mark if optional."""
  rows = [line.split() for line in text.strip().splitlines()]
  return tuple(
    dataclasses.replace(_at(bases, name.rstrip('?'), sha256, size), optional=name.endswith('?'))
    for sha256, size, name in rows
  )


# FiD's lists of the rows of the originals that make train, dev and test.
FID_INDEXES = Source(
  'dataindex.tar.gz', ('https://dl.fbaipublicfiles.com/FiD/data/dataindex.tar.gz',), optional=True
)
NQ_OPEN = (
  *_listed(
    _NQ,
    """
    0c93aaf13b12f855628489665e4ef85ffb8573ad444646f11f4fabdc57a0aabf 8522298 NQ-open.train.jsonl
    f15567f38099f3615f5b8a685c0aef449c11ad90d3da3735e8d1b98115b40616 391316 NQ-open.dev.jsonl
    """,
  ),
  FID_INDEXES,
)
_UNFILTERED_SHA256 = '7f0c94207fd0a1eb7bba3d52cdfe0735c98de850b9e5aa4e75f2776ef9a531d0'
_UNFILTERED = _at(_TRIVIAQA, 'triviaqa-unfiltered.tar.gz', _UNFILTERED_SHA256, '632549060')
TRIVIAQA_UNFILTERED = (_UNFILTERED, FID_INDEXES)
_FILTERED_SHA256 = 'ef94fac6db0541e5bb5b27020d067a8b13b1c1ffc52717e836832e02aaed87b9'
TRIVIAQA_FILTERED = (_at(_TRIVIAQA, 'triviaqa-rc.tar.gz', _FILTERED_SHA256, '2665779500'),)
WEB_QUESTIONS = tuple(
  Source(f'webquestions.examples.{split}.json', (f'{_CODALAB}{bundle}/contents/blob/',), sha, size)
  for split, bundle, sha, size in (
    (
      'train',
      '0x4a763f8cde224c2da592b75f29e2f5c2',
      'fb1797e4554a1b1be642388367de1379f8c0d5afc609ac171492c67f7b70cb1e',
      825320,
    ),
    (
      'test',
      '0xe7bac352fce7448c9ef238fb0a297ec2',
      'e3d4550e90660aaabe18458ba34b59f2624857273f375af7353273ce8b84ce6e',
      447645,
    ),
  )
)
CURATED_TREC = (_at(_BRMSON, 'large2180-train.tsv'), _at(_BRMSON, 'large2180-test.tsv'))
FEVER = _listed(
  _FEVER,
  """
eba7e8f87076753f8494718b9a857827af7bf73e76c9e4b75420207d26e588b6 33024303 train.jsonl
e89865bfe1b4dd054e03dd57d7241a6fde24862905f31117cf0cd719f7c78df7 4349935 shared_task_dev.jsonl
76dd0872d8fa1f49efe1194fe8a88b7dd4c715c77d87a142b615d4be583e1e51 1599159 shared_task_test.jsonl
41158707810008747946bf23471e82df53e77a513524b9e3ec1c2e674ef5ef8c 2168767 paper_dev.jsonl?
fb7b0280a0adc2302bbb29bfb7af37274fa585de3171bcf908f180642d11d88e 2181168 paper_test.jsonl?
""",
)
FEVER_SYMMETRIC = tuple(
  _at(_SYMMETRIC, f'symmetric_{version}/fever_symmetric_{name}.jsonl')
  for version, name in (('v0.1', 'full'), ('v0.1', 'generated'), ('v0.2', 'dev'), ('v0.2', 'test'))
)
MMLU = (
  Source(
    'data.tar',
    (
      'https://people.eecs.berkeley.edu/~hendrycks/data.tar',
      'https://huggingface.co/datasets/cais/mmlu/resolve/c30699e8356da336a370243923dbaf21066bb9fe/data.tar',
    ),
    'bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b',
    166184960,
  ),
)
MS_MARCO = _listed(
  _MS_MARCO,
  """
e91745411ca81e441a3bb75deb71ce000dc2fc31334085b7d499982f14218fe2 1112116929 train_v2.1.json.gz
5b3c9c20d1808ee199a930941b0d96f79e397e9234f77a1496890b138df7cb3c 138303699 dev_v2.1.json.gz
05ac0e448450d507e7ff8e37f48a41cc2d015f5bd2c7974d2445f00a53625db6 133851237 eval_v2.1_public.json.gz?
""",
)
TEMPLAMA = tuple(_at(_TEMPLAMA, name) for name in ('train.json', 'val.json', 'test.json'))
WIKITEXT_2, WIKITEXT_103 = (
  (source,)
  for source in _listed(
    _WIKITEXT,
    """
    92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c 4475746 wikitext-2-v1.zip
    242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590 190229076 wikitext-103-v1.zip
    """,
  )
)

# KILT's name of a set to the splits that it publishes, as in `_listed`.
_KILT_FILES = {
  'fever': """
    a42b948957680b3d316bbc9c24f3e499f0e93a3b0a8b94ca9d972d5da5758c6a 38941824 train
    0132fb971e4206c8bd9da3916f0f46a30ee6610394aee1738ce6cf6644592739 6174139 dev
    d95e0a7086c1d5687984460aa9d5b82b3afb58972132c8cc04a75dfd23cb1a86 838585 test_without_answers
  """,
  'aidayago2': """
    398231ec4ee9fd5616456d049875e51b1e0709f00ac2d74398dd4480ae5647b2 70139831 train
    3f5e23e1af46c8671c9870e13ced13fd517029da4963ad9ff4b834c4b42deb52 21061554 dev
    2ba0836d3f8c70126022a83fd78da0bf7c910fa7813996dd2afee5e38de63648 14436143 test_without_answers
  """,
  'wned': """
    e8e91d120abcb3433c952541aebd8dbf0c6abe3c378bdd64cd6d2186738cfbaf 12868348 dev
    f7b220d404d474f617b00c4a030a87024835b72aff131016716b84feca4d95ee 13295124 test_without_answers
  """,
  'cweb': """
    c98b2301818b53df2025b09801be095152244dbbe7242efbfffd018929bfb4bf 90228527 dev
    18b078340bde25e42c7136c5bc80c2e3557803e40137b40230af5834e74b6c0d 100216209 test_without_answers
  """,
  'trex': """
    724a8a0fd1f99fe9b15cf6309d7ce63dcb7cd31f33aea717ff26e6d6b6fbdd97 1752330104 train
    7ee1a2cd351d928d01ede1763ae8d6ae442a00b07deef80e347852f20a029e5f 3803558 dev
    0a2c6a31ebea567e7a8b31c44bf2fb59dab601c8da6de7f3a53419c7710bdc43 895854 test_without_answers
  """,
  'structured_zeroshot': """
    f666359fa2b23e75d700bd1f25efd12d3bf981b1be70d8ad2d268d67e9bb3a5d 71444475 train
    dd120ba5b62c6499f4e79bf5bf5a908eb96b583ba9bf8c76a4535ac21c5dac8d 2266707 dev
    3353137527c6fe9e48910e2c4d94d3ac01352c52e90a618beaaa807968fd39da 1216038 test_without_answers
  """,
  'nq': """
    13629ef9f0c4bb7b7b237ce08fae2334acb32a2c1bf69db2350021cad46188a4 51895886 train
    1bcdb150fb10504bd80b915730cde1b384c21647bcf14a4592e4e5df42cc6dfb 7936566 dev
    1232f95e7d008669930c441444aa470d54678d886335175e2227455716309e15 334047 test_without_answers
  """,
  'hotpotqa': """
    7ba73ede642336703d1235c63ecb4c20ae90c7eb19d36302bffa7eb1ec7f9153 52767068 train
    7f2efbc22c462eb5710e5ecd99447702e7f48203eecd4489bf32a332389d70b6 3971321 dev
    656d51f53796e3ea2a1f808a22160e7363a24a05f1ac7dd094d25659d963ef51 778249 test_without_answers
  """,
  'triviaqa': """
    509e627a5e606d3b8018c04cd99415d7dca90d7b9a9f491ba0cf2db8c7e999ad 101613288 train_id
    bb505d8437100589de72256bf0d106a4a72da01df5a977fbc778688b8621d5a6 9809706 dev_id
    a6904eeb81a269cc675152c72b31c5b3361b40bf277a2973f2836670c7de4a19 123354 test_id_without_answers
  """,
  'eli5': """
    66f19183bda5f5185fe98a5fe84925f6802d9b53a5bb12728ded760fd80ef0a0 548249898 train
    10387a08e3277d3e5722305cef8e739279c83de0218e7b3db76b301949822303 14149811 dev
    43f82439f15f3141d115c06fb0dc0697a2a6313705dbdec6668eaefe9925a2c3 98951 test_without_answers
  """,
  'wow': """
    d90e9191d52670e38c340c4aa208e326bbf10f1e85ef6af9b3d3bcb98d3d30fb 48937036 train
    bbf98ea3841f3454e189e69829d6c03149c2e7482b3feda0ea73acf547654c7b 2418285 dev
    f3303ec5d7def4cf178552a8ed17bd01cb23bfeccc3abde147bebfa4bade6d8b 1292018 test_without_answers
  """,
}


def kilt(name: str) -> tuple[Source, ...]:
  """The files of one of KILT's sets by its name; TriviaQA's own archive has its questions."""
  text = re.sub(r'(\w+)$', rf'{name}-\1-kilt.jsonl', _KILT_FILES[name].strip(), flags=re.M)
  return _listed(_KILT, text) + (TRIVIAQA_FILTERED if name == 'triviaqa' else ())
