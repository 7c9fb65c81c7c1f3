"""The compiled kernels: built by the machine's C compiler on their first use, and kept in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ctypes import CDLL, POINTER, Structure, c_double, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch

from pvlm_protocols.backend import BackendError

_SOURCE = Path(__file__).with_name("kernels.c")
# Without contraction a product and a sum are fused only where the source says so. Otherwise the compiler could decide
# it by the number of tokens.
_FLAGS = ("-O3", "-mavx2", "-mfma", "-mf16c", "-fno-fast-math", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
_COMPILER = "CC"
_COMPILERS = ("cc", "gcc", "clang")
_SECONDS = 120
_INSTEAD = f"take the backend 'torch', or another compiler by the environment variable {_COMPILER}"
_MISSING_OPENMP = re.compile(r"-lg?omp\b|omp\.h|-fopenmp")


class Matrix(Structure):
    """As in kernels.c."""

    _fields_ = (
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("halves", c_int64),
    )


class Layer(Structure):
    """As in kernels.c."""

    _fields_ = (
        ("qkv", Matrix),
        ("output", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        ("qk_norm", c_void_p),
    )


class DecoderStructure(Structure):
    """``Decoder`` in kernels.c."""

    _fields_ = (
        ("layers", POINTER(Layer)),
        ("head", Matrix),
        ("embedding", c_void_p),
        ("norm", c_void_p),
        ("vocabulary", c_int64),
        ("width", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("inner", c_int64),
        ("epsilon", c_double),
        ("threads", c_int64),
    )


class Segment(Structure):
    """As in kernels.c."""

    _fields_ = (("keys", c_void_p), ("room", c_int64), ("rows", c_int64))


class PartStructure(Structure):
    """``Part`` in kernels.c."""

    _fields_ = (("segments", POINTER(Segment)), ("count", c_int64), ("tokens", c_int64))


class PassStructure(Structure):
    """``Pass`` in kernels.c."""

    _fields_ = (("parts", POINTER(PartStructure)), ("count", c_int64), ("tokens", c_int64), ("scratch", c_void_p))


@cache
def kernels() -> CDLL:
    """Return the library, with its functions' arguments declared.

    Raises:
        BackendError: the processor is not supported, the compiler is missing or fails, or the library cannot be kept or
            loaded.
    """
    if platform.machine() not in ("x86_64", "AMD64") or torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        raise BackendError(
            f"the backend 'native' needs an x86-64 processor with AVX2, and this is {platform.machine()} without; "
            "take the backend 'torch'"
        )
    built = _build()
    try:
        library = CDLL(str(built))
    except OSError as error:  # a file system without programs, or no OpenMP library of the compiler
        raise BackendError(
            f"the kernels of the backend 'native' cannot be loaded from {built} ({error}); "
            "set XDG_CACHE_HOME to a directory that may hold programs, or take the backend 'torch'"
        ) from error
    decoder, described = POINTER(DecoderStructure), POINTER(PassStructure)
    library.scratch_size.argtypes = (decoder, described)
    library.scratch_size.restype = c_int64
    library.run_layers.argtypes = (decoder, described, c_int64, c_int64, c_void_p, c_void_p)
    library.run_layers.restype = None
    library.run_head.argtypes = (decoder, described, c_void_p, c_void_p)
    library.run_head.restype = None
    library.multiply.argtypes = (POINTER(Matrix), c_int64, c_void_p, c_int64, c_void_p, c_int32)
    library.multiply.restype = None
    return library


def _build() -> Path:
    """The library, by the first compiler that can build it. Raises the first one's BackendError if none can."""
    failed: list[BackendError] = []
    for command in _compilers():
        try:
            return _build_by(command)
        except BackendError as error:
            failed.append(error)
    raise failed[0]


def _build_by(command: list[str]) -> Path:
    # The name depends on all inputs, so that another version of pvlm or of the compiler makes another file.
    sources = (path.read_text() for path in sorted(_SOURCE.parent.glob("*.[ch]")))
    recipe = "\0".join((*sources, *command, *_FLAGS, _run([*command, "--version"])))
    folder = _cache_folder()
    library = folder / f"kernels-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"
    try:
        if _is_whole(library):
            return library
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _building(folder) as temporary:
            built = temporary / library.name
            _run([*command, *_FLAGS, "-o", str(built), str(_SOURCE), "-lm"])
            code = built.read_bytes()
            built.write_bytes(code + hashlib.sha256(code).digest())
            built.replace(library)  # atomic, because another process may build it at the same time
    except OSError as error:
        raise BackendError(
            f"the kernels of the backend 'native' cannot be kept in {folder} ({error}); "
            "set XDG_CACHE_HOME to a directory that can be written"
        ) from error
    return library


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """Make a directory to compile in, and remove those that killed processes left: nobody locks them any more."""
    with ExitStack() as mine:
        with _locked(folder, fcntl.LOCK_EX):
            for left in folder.glob("building-*"):
                with suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(left, ignore_errors=True)
            temporary = Path(mkdtemp(prefix="building-", dir=folder))
            mine.callback(shutil.rmtree, temporary, ignore_errors=True)
            mine.enter_context(_locked(temporary, fcntl.LOCK_EX))
        yield temporary


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Raises OSError where the folder is locked by another process and ``how`` does not wait."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _cache_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pvlm"
    except RuntimeError as error:  # no HOME, and a user without an entry
        raise BackendError(
            f"the backend 'native' has no place to keep its kernels ({error}); "
            "set XDG_CACHE_HOME to a directory that can be written"
        ) from None


def _is_whole(library: Path) -> bool:
    """Return whether the library ends in its digest. A truncated one, as after a crash, would kill the process."""
    if not library.exists():
        return False
    kept = library.read_bytes()
    size = hashlib.sha256().digest_size
    return hashlib.sha256(kept[:-size]).digest() == kept[-size:]


def _compilers() -> list[list[str]]:
    """The commands of the compilers that are installed, at least one; only the named one, if one is named."""
    named = os.environ.get(_COMPILER)
    found = []
    for command in [named] if named else _COMPILERS:
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise BackendError(
                f"the environment variable {_COMPILER} is {command!r}: {error}; name a compiler there, or nothing"
            ) from None
        if words and shutil.which(words[0]):
            found.append(words)
    if found:
        return found
    raise BackendError(
        f"the backend 'native' compiles its kernels and finds no C compiler ({named or ', '.join(_COMPILERS)}): "
        f"install one, name it in the environment variable {_COMPILER}, or take the backend 'torch'"
    )


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    except OSError as error:
        raise BackendError(f"'{shlex.join(command)}' cannot be run: {error}; {_INSTEAD}") from None
    except subprocess.TimeoutExpired:
        raise BackendError(f"'{shlex.join(command)}' takes longer than {_SECONDS} s; {_INSTEAD}") from None
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()
        missing = "install its OpenMP library (for clang libomp), " if _MISSING_OPENMP.search(done.stderr) else ""
        raise BackendError(
            f"the kernels of the backend 'native' do not compile: '{shlex.join(command)}' says {said[0]!r}; "
            f"{missing}{_INSTEAD}"
        )
    return done.stdout
