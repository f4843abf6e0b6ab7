"""The names that Detectron2's setup.py imports; the build command builds nothing."""

from setuptools import Extension
from setuptools.command.build_ext import build_ext

CUDA_HOME = None
ROCM_HOME = None


def CppExtension(name, *args, **kwargs):
    return Extension(name, sources=[])


CUDAExtension = CppExtension


class BuildExtension(build_ext):
    def run(self):
        self.extensions = []
