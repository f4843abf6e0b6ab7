"""What Detectron2's setup.py asks of torch, so that its wheel builds without torch or a compiler.

This package is installed only in the temporary environment that builds that wheel.
"""

from types import SimpleNamespace

__version__ = "1.10.0"
version = SimpleNamespace(cuda=None, hip=None)
cuda = SimpleNamespace(is_available=lambda: False)
