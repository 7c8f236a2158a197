"""`python -m ralm_jax COMMAND` is `ralm COMMAND`."""

import sys

from ralm_jax import cli

sys.exit(cli.main())
