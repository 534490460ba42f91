"""Builds the row pass where a C++ compiler is found; without one the plain PyTorch path of the kernels serves.

It is no Python extension but a shared library with a plain C interface, opened by ctypes, so that one wheel serves
every Python. The same sources are compiled once for each instruction set; the best that the processor has is chosen
at run time.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("src/likely/kernels/native")
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma"]
X86 = {"avx2": (8, ["-mavx2", "-mfma"]), "avx512": (16, AVX512), "avx512bf16": (16, [*AVX512, "-mavx512bf16"])}
SETS = {"generic": (4, []), **(X86 if platform.machine().lower() in {"x86_64", "amd64"} else {})}
# Contraction to fused multiply-adds is wanted; -ffast-math is not: NaN and infinities must stay what they are.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-g0",
]


class BuildRows(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, extension: Extension) -> None:
        openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
        jobs = [
            (source, name, lanes, flags)
            for name, (lanes, flags) in SETS.items()
            for source in ("rows.cpp", "flat.cpp", "odds.cpp")
        ] + [("dispatch.cpp", "dispatch", 0, [])]

        def compiled(job: tuple[str, str, int, list[str]]) -> str:
            source, name, lanes, flags = job
            macros: list[tuple[str, str | None]] = [("SET", name), ("LANES", str(lanes))]
            macros += [("LIKELY_X86", None)] if len(SETS) > 1 else []
            (made,) = self.compiler.compile(
                [str(NATIVE / source)],
                output_dir=os.path.join(self.build_temp, name),
                macros=macros,
                extra_postargs=[*FLAGS, *openmp, *flags],
                depends=[str(NATIVE / header) for header in ("rows.h", "vectors.h")],
            )
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, jobs))
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(extension.name), extra_postargs=openmp, target_lang="c++"
        )


class AnyPython(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension("likely.kernels.native._rows", [str(NATIVE / "rows.cpp")], optional=True, language="c++")],
    cmdclass={"build_ext": BuildRows, "bdist_wheel": AnyPython},
)
