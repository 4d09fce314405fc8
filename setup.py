"""Builds the native CPU kernels of the operator, when there is a compiler; everything else is in pyproject.toml."""

import logging
import os
import platform
import re
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError

CSRC = Path("src/deformable_detr/ops/csrc")
X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = ["-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
CPP_FLAGS = ["-std=c++17", "-fno-exceptions", "-fno-rtti", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mprefer-vector-width=512"]
SOURCES = {"kernel_portable.cpp": [], **({"kernel_avx2.cpp": AVX2, "kernel_avx512.cpp": AVX512} if X86 else {})}

# make test-asan: a mistake in memory ends the process. One form of the kernels, because each takes over a minute to build.
SANITIZE = []
if os.environ.get("DEFORMABLE_DETR_SANITIZE"):
    SANITIZE = ["-fsanitize=address,shift,bounds,float-cast-overflow", "-fno-sanitize-recover=all"]
    FLAGS = [*FLAGS, "-O1", "-g1", *SANITIZE, "--param=asan-instrumentation-with-call-threshold=0"]
    SOURCES = {"kernel_avx2.cpp": AVX2} if X86 else SOURCES
PLAIN_SOURCES = ("threads.c", "checks.c")

KERNELS = Extension(
    "deformable_detr.ops._cpu_kernels",
    sources=[*(str(CSRC / name) for name in PLAIN_SOURCES), *(str(CSRC / name) for name in SOURCES)],
    depends=[str(CSRC / name) for name in ("kernel.h", "vector.h", "problem.h", "winograd.h")],
    optional=True,
)


class BuildKernels(build_ext):
    """A plain shared library, each source with the instructions it is meant for; a failure leaves the reference operator."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without a Python version: the library knows nothing of Python."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None: there is no module initialisation to export."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """Build, or say why not and go on."""
        try:
            self._compile(ext)
        except (BaseError, OSError) as error:
            logging.getLogger(__name__).warning(
                "The native CPU kernels were not built (%s). The package works without them, but the operator is slower; "
                "install a C++ compiler and reinstall to get them.",
                error,
            )

    def _compile(self, ext: Extension) -> None:
        compiler, output = self.compiler, Path(self.build_temp)
        macros = [("MSDA_X86", "1")] if X86 else []
        plain = [str(CSRC / name) for name in PLAIN_SOURCES]
        objects = compiler.compile(plain, output_dir=str(output), macros=macros, extra_postargs=FLAGS, depends=ext.depends)
        for name, instructions in SOURCES.items():
            flags = [*FLAGS, *CPP_FLAGS, *instructions]
            objects += compiler.compile([str(CSRC / name)], output_dir=str(output), extra_postargs=flags, depends=ext.depends)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler.link_shared_object(objects, str(target), libraries=["pthread"], extra_postargs=SANITIZE)


class PlatformWheel(bdist_wheel):
    """Tagged py3-none-<platform>: the library inside fits every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3, no ABI, this platform; on Linux with the C library that the kernels need, as PEP 600 has it."""
        platform_tag = super().get_tag()[2]
        library = Path(self.get_finalized_command("build").build_lib, KERNELS.name.replace(".", "/")).with_suffix(".so")
        if platform_tag.startswith("linux_") and library.exists():
            needed = [int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", library.read_bytes())]
            if needed:  # none with another C library
                platform_tag = platform_tag.replace("linux_", f"manylinux_2_{max(17, *needed)}_", 1)
        return "py3", "none", platform_tag


setup(ext_modules=[KERNELS], cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel})
