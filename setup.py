"""Packaging of ralm_jax; `pip install -e '.[dev]'` for development."""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).resolve().parent

# Lower bounds are the oldest versions the tests have passed with.
REQUIRES = [
  'jax>=0.10',
  'flax>=0.12.8',
  'optax>=0.2.8',
  'orbax-checkpoint>=0.12.8',
  'seqio>=0.0.20',
  # seqio imports tensorflow-text, whose minor version must be TensorFlow's;
  # `tensorflow` alone, since `tensorflow-cpu` beside it installs both.
  'tensorflow>=2.21,<2.22',
  'tensorflow-text>=2.21,<2.22',
  'tensorflow-datasets>=4.9.10',
  'importlib_resources>=6.0',  # tensorflow-datasets needs it undeclared
  'faiss-cpu>=1.12',
  'gin-config>=0.5.0',
  'clu>=0.0.12',
  'tensorboard>=2.20',
  'grpcio>=1.85.1',
  'grpcio-health-checking>=1.80',
  'protobuf>=6.33.5',  # what retrieval_pb2.py was generated for
  'pyarrow>=20.0',
  'numpy>=2.0',
  'tokenizers>=0.21',
  'sentencepiece>=0.2.0',
  'safetensors>=0.5',
  'jaxtyping>=0.3',
  'rouge-score>=0.1.2',
  'sacrebleu>=2.4',
  'tqdm>=4.66',
  'huggingface_hub>=1.0',
  'jinja2>=3.1.6',  # chat templates; older sandboxes have holes
  'gguf>=0.17',
]
TEST = [
  'pytest>=8.0',
  # Independent peers of the parity tests; the CPU build of torch.
  'torch==2.13.0',
  'transformers>=5.0',
  'accelerate>=1.10',  # with it transformers reads GGUF
  'bm25s>=0.2',
  'beartype>=0.20',  # checks the shapes of signatures
]
EXTRAS = {
  'cuda': ['jax[cuda13]>=0.10'],
  'tpu': ['jax[tpu]>=0.10'],
  'torch': ['torch>=2.6'],  # reads pytorch_model.bin
  # seqio_cache_tasks. Beam needs protobuf 6, for which these bounds choose what
  # was generated for it.
  'cache': [
    'apache-beam[tfrecord]>=2.77',
    'array_record>=0.8',
    'sentencepiece<0.2.2',
    'grpcio-health-checking<1.82',
  ],
  'test': TEST,
  'dev': TEST
  + [
    'mypy>=2.0',
    'myst-parser>=4.0',
    'pre-commit>=4.0',
    'pytest-xdist>=3.6',
    'ruff>=0.17',
    'sphinx>=8.1',
  ],
}

setuptools.setup(
  name='ralm_jax',
  version='0.1.0',
  description='Retrieval-augmented language models in JAX and Flax',
  long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11,<3.14',
  packages=[
    *setuptools.find_packages(include=['ralm_jax', 'ralm_jax.*', 'retrieval_service']),
    'ralm_jax.tasks',
    'ralm_jax.gin_configs',
  ],
  # Beside the package in the checkout, inside it where it is installed: a file
  # tasks.py of the user's own is another module.
  package_dir={'ralm_jax.tasks': 'tasks', 'ralm_jax.gin_configs': 'gin_configs'},
  package_data={
    'ralm_jax': ['py.typed'],
    'ralm_jax.gin_configs': ['**/*.gin'],
    'retrieval_service': ['*.proto', '*.pyi', 'py.typed'],
  },
  install_requires=REQUIRES,
  extras_require=EXTRAS,
  entry_points={'console_scripts': ['ralm = ralm_jax.cli:main']},
)
