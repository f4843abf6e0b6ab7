"""``python -m scratch_vs_pretrain.cli``: the same as ``svp``."""

import sys

from scratch_vs_pretrain.cli import main

sys.exit(main())
