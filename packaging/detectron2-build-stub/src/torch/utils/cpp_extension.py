"""The names that Detectron2's setup.py imports; the build command compiles nothing."""

from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

CUDA_HOME = None
ROCM_HOME = None

# Read by every process of the environment. The package, where it is there, prepares v0.6 for what
# NumPy and Pillow have removed since, and only when it is imported (scratch_vs_pretrain/
# _detectron2.py); it sorts behind the `__editable__` file that makes the package importable.
PTH = (
    "import importlib.util as u; "
    "u.find_spec('scratch_vs_pretrain') and __import__('scratch_vs_pretrain')\n"
)


def CppExtension(name, *args, **kwargs):
    return Extension(name, sources=[])


CUDAExtension = CppExtension


class BuildExtension(build_ext):
    def run(self):
        self.extensions = []
        (Path(self.build_lib) / "detectron2-v0.6.pth").write_text(PTH)
