"""Compiling once and keeping it, what a user is told without a compiler, and what the code generator takes from /proc/cpuinfo."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from evopress_native import evopress_kernels, machine, native, toolchain
from evopress_native.generate import bitmask_source, dense_source, integer_source
from evopress_native.machine import BASE, DOT, TILES, WIDE, Machine, read_machine, this_machine
from evopress_native.toolchain import cache_folder, compiler, library

from evopress.api import MissingDependency, StorageError
from evopress.latency.sample import random_variant

SOURCE = "int answer(void) { return 42; }"
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")
needs_sh = pytest.mark.skipif(shutil.which("sh") is None, reason="no shell to stand in for a compiler")


@pytest.fixture(autouse=True)
def fresh():
    """What is remembered of the compiler is forgotten before and after each test."""
    compiler.cache_clear()
    yield
    compiler.cache_clear()


@pytest.fixture
def started(monkeypatch):
    """Command lines of the processes that the tool chain starts."""
    seen, run = [], subprocess.run

    def planted(command, **options):
        seen.append(command)
        return run(command, **options)

    monkeypatch.setattr(toolchain.subprocess, "run", planted)
    return seen


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)


def stand_in(folder, script):
    """A program that is found as a compiler."""
    path = folder / "fakecc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


# Compiled once and kept -----------------------------------------------------------------------------------------------------------------


@needs_compiler
def test_a_library_is_compiled_once_and_kept(tmp_path, started):
    assert library(SOURCE, (), tmp_path).answer() == 42
    assert sum("-o" in command for command in started) == 1
    files = sorted(tmp_path.iterdir())
    assert [file.suffix for file in files] == [".so"]
    before = files[0].stat().st_mtime_ns
    assert library(SOURCE, (), tmp_path).answer() == 42
    assert sum("-o" in command for command in started) == 1
    assert sorted(tmp_path.iterdir()) == files
    assert files[0].stat().st_mtime_ns == before


@needs_compiler
def test_other_source_flags_or_compiler_are_other_files(tmp_path, monkeypatch):
    for source, flags in ((SOURCE, ()), (SOURCE + "\n", ()), (SOURCE, ("-mavx2",))):
        library(source, flags, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(toolchain, "version", lambda path: "another compiler")
    library(SOURCE, (), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


@needs_compiler
@needs_sh
def test_the_file_appears_whole_though_another_process_made_it_first(tmp_path, monkeypatch):
    """The planted compiler lets a rival finish before it writes; the file that is loaded then is ours, and nothing else is left."""
    rival = f"import sys; sys.path[:0] = {sys.path!r}; from pathlib import Path; from evopress_native.toolchain import library\n"
    rival += f"assert library({SOURCE!r}, (), Path({str(tmp_path / 'kept')!r})).answer() == 42"
    (tmp_path / "rival.py").write_text(rival)
    real = compiler()
    script = f'case "$*" in *-o*) CC={real} {sys.executable} {tmp_path / "rival.py"} || exit 9;; esac\nexec {real} "$@"'
    monkeypatch.setenv("CC", stand_in(tmp_path, script))
    compiler.cache_clear()
    named = toolchain.version(real)  # else the rival's file would have another name
    monkeypatch.setattr(toolchain, "version", lambda path: named)
    seen = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: (seen.append(to.is_file()), replace(path, to))[1])
    assert library(SOURCE, (), tmp_path / "kept").answer() == 42
    assert seen == [True], "the rival's file was there"
    assert len(list((tmp_path / "kept").iterdir())) == 1


@needs_compiler
def test_several_processes_at_once_all_get_the_library(tmp_path):
    code = "from pathlib import Path; from evopress_native.toolchain import library\n"
    code += f"assert library({SOURCE!r}, (), Path({str(tmp_path)!r})).answer() == 42"
    rivals = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for rival in rivals:
        assert (rival.communicate(timeout=120)[1], rival.returncode) == ("", 0)
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"EVOPRESS_HOME": "~/mine", "XDG_CACHE_HOME": "{home}/elsewhere"}, "{home}/elsewhere/evopress/kernels"),
        ({"XDG_CACHE_HOME": "{home}/cached"}, "{home}/cached/evopress/kernels"),
        ({"EVOPRESS_HOME": "", "XDG_CACHE_HOME": ""}, "{home}/.cache/evopress/kernels"),
        ({}, "{home}/.cache/evopress/kernels"),
    ],
)
def test_where_libraries_are_kept(variables, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("EVOPRESS_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    assert cache_folder() == Path(folder.format(home=tmp_path))


@needs_compiler
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be kept in .*file/kernels.*Set XDG_CACHE_HOME"):
        library(SOURCE, (), tmp_path / "file" / "kernels")


# Which compiler -------------------------------------------------------------------------------------------------------------------------


@needs_sh
def test_cc_is_honoured(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", stand_in(tmp_path, "echo hello"))
    assert compiler() == str(tmp_path / "fakecc")
    assert toolchain.version(str(tmp_path / "fakecc")) == f"{tmp_path / 'fakecc'} hello"


def test_a_cc_that_is_not_there_is_passed_over(monkeypatch):
    without = compiler()
    compiler.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(toolchain, "COMPILERS", ("cc", "gcc", "clang"))
    assert compiler() == without


def test_without_a_compiler_nothing_is_supported_and_the_error_says_what_to_install(no_compiler, monkeypatch):
    monkeypatch.setattr(native, "this_machine", lambda: Machine(256, False, False))
    for kernel, format in zip(evopress_kernels(), ("int4-g32", "bitmask", "dense"), strict=True):
        assert not kernel().supports(format, (8, 64), "cpu", torch.float32)
        native.compiled.cache_clear()
        with pytest.raises(MissingDependency) as caught:
            kernel().pack(random_variant(format, (8, 64), torch.Generator()), torch.float32)
        assert str(caught.value) == (
            "The native kernels need a C compiler and found none. "
            "Install one (apt install gcc), or set CC to its path. Until then torch's kernels run."
        )


def test_where_nothing_can_be_kept_a_folder_of_this_process_serves(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = cache_folder()
    assert folder.is_dir()
    assert folder == cache_folder()
    assert tmp_path not in folder.parents


@needs_sh
@pytest.mark.parametrize(
    "script", ["exit 1", 'case "$*" in *--version*) echo old 1.0;; *) exit 0;; esac'], ids=["refuses", "makes nothing"]
)
def test_a_compiler_that_cannot_make_a_library_is_none_for_the_kernels(script, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", stand_in(tmp_path, script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not toolchain.accepts(())
    assert native.best_machine() is None
    assert not any(kernel().supports("int4-g32", (8, 64), "cpu", torch.float32) for kernel in evopress_kernels())


STEPS = [Machine(512, True, True), Machine(512, True, False), Machine(512, False, False), Machine(256, False, False), None]


@pytest.mark.parametrize("known", range(len(STEPS)))
@pytest.mark.parametrize("tiles", [True, False])
def test_kernels_step_down_to_what_compiler_and_system_know(known, tiles, monkeypatch):
    accepted = {machine.flags for machine in STEPS[known:] if machine}
    monkeypatch.setattr(native, "this_machine", lambda: STEPS[0])
    monkeypatch.setattr(native, "accepts", lambda flags: flags in accepted)
    monkeypatch.setattr(native, "tiles_allowed", lambda: tiles)
    assert native.best_machine() == (STEPS[1] if known == 0 and not tiles else STEPS[known])


@needs_compiler
@pytest.mark.slow
def test_what_compiling_takes(tmp_path):
    """A measurement, not a verdict: seconds for one of our files, and for nothing but torch's headers."""
    from torch.utils.cpp_extension import include_paths

    began = time.perf_counter()
    library(integer_source(this_machine(), 4, True), native.best_machine().flags, tmp_path)
    ours = time.perf_counter() - began
    (tmp_path / "empty.cpp").write_text("#include <torch/all.h>\n")
    headers = [f"-I{path}" for path in include_paths()]
    began = time.perf_counter()
    done = subprocess.run(
        ["c++", "-O3", "-std=c++20", *headers, "-c", str(tmp_path / "empty.cpp"), "-o", str(tmp_path / "empty.o")], check=False
    )
    theirs = time.perf_counter() - began
    assert done.returncode == 0
    print(f"one of our files {ours:.2f} s, torch's headers {theirs:.2f} s: {theirs / ours:.1f} times")


@needs_sh
def test_a_compiler_that_refuses_is_named_with_its_first_error(tmp_path, monkeypatch):
    script = (
        'case "$*" in *--version*) echo old 1.0;; *) echo "kernel.c:1: warning: x" >&2; echo "kernel.c:2: error: no AMX" >&2; exit 1;; esac'
    )
    monkeypatch.setenv("CC", stand_in(tmp_path, script))
    with pytest.raises(MissingDependency) as caught:
        library(SOURCE, (), tmp_path / "kept")
    assert caught.value.message == f"{tmp_path / 'fakecc'} does not compile the native kernels: kernel.c:2: error: no AMX"
    assert caught.value.hint == "Set CC to gcc 11 or clang 15, or later."
    assert not list((tmp_path / "kept").iterdir())


@needs_compiler
@pytest.mark.parametrize("flags", [("-mno-such-flag",), ()])
def test_the_systems_compiler_says_what_it_refuses(tmp_path, flags):
    with pytest.raises(MissingDependency, match=r"does not compile the native kernels: .*error"):
        library(SOURCE if flags else "int answer(void) { return nothing; }", flags, tmp_path)


@needs_compiler
@pytest.mark.parametrize(
    "target",
    [
        Machine(512, True, True),
        Machine(512, True, False),
        Machine(512, True, False, quick_dot=True),
        Machine(512, False, False),
        Machine(256, False, False),
    ],
    ids=str,
)
def test_sources_compile_without_a_warning_for_processors_that_are_not_here(target, tmp_path):
    for bfloat in (True, False):
        sources = {"int": integer_source(target, 6, bfloat), "mask": bitmask_source(target, bfloat), "dense": dense_source(target, bfloat)}
        for name, source in sources.items():
            (tmp_path / "kernel.c").write_text(source)
            command = [
                compiler(),
                *toolchain.FLAGS,
                "-fsyntax-only",
                "-Werror",
                "-Wno-unknown-pragmas",
                *target.flags,
                str(tmp_path / "kernel.c"),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, ""), f"{name}, bfloat16 {bfloat}"


# The processor --------------------------------------------------------------------------------------------------------------------------

OLD = "fpu sse sse2 ssse3 sse4_1 sse4_2 popcnt avx"
HASWELL = f"{OLD} avx2 fma f16c bmi2"
SKYLAKE = f"{HASWELL} avx512f avx512bw avx512vl avx512dq avx512cd"
ZEN4 = f"{SKYLAKE} avx512_bf16 avx512_vbmi2 avx512_vnni"
SAPPHIRE = f"{ZEN4} amx_tile amx_bf16 amx_int8 avx512_fp16"
COOPER = f"{SKYLAKE} avx512_bf16"


@pytest.mark.parametrize(
    ("flags", "found", "name"),
    [
        (OLD, None, "None"),
        (HASWELL.replace("f16c ", ""), None, "None"),
        (HASWELL, Machine(256, False, False), "avx2"),
        (f"{HASWELL} avx512f", Machine(256, False, False), "avx2"),
        (SKYLAKE, Machine(512, False, False), "avx512"),
        (COOPER, Machine(512, False, False), "avx512"),
        (ZEN4, Machine(512, True, False), "avx512-bf16"),
        (f"{ZEN4} amx_tile amx_int8", Machine(512, True, False), "avx512-bf16"),
        (SAPPHIRE, Machine(512, True, True), "amx"),
    ],
)
def test_a_machine_is_what_its_flags_say(flags, found, name):
    text = (
        f"processor\t: 0\nmodel name\t: A CPU avx512f\nflags\t\t: {flags}\nvmx flags\t: amx_tile\n\nprocessor\t: 1\nflags\t\t: {SAPPHIRE}\n"
    )
    assert read_machine(text, {}, {}) == found
    assert str(found) == name


@pytest.mark.parametrize(("vendor", "flags", "quick"), [
    ("AuthenticAMD", ZEN4, True), ("AuthenticAMD", SKYLAKE, False), ("GenuineIntel", ZEN4, False), ("GenuineIntel", SAPPHIRE, False),
])  # fmt: skip
def test_dot_products_are_quick_on_amds_processors(vendor, flags, quick):
    found = read_machine(f"vendor_id\t: {vendor}\nflags\t: {flags}\n", {}, {})
    assert found.quick_dot == quick
    assert (str(found) == "avx512-quick-bf16") == quick
    while found is not None:
        assert found.dot or not found.quick_dot
        found = found.lesser


def test_caches_are_the_cores_own_data():
    sizes = {"index0": "48K\n", "index1": "32K\n", "index2": "2048K\n", "index3": "105M\n"}
    levels = {"index0": "1 Data", "index1": "1 Instruction", "index2": "2 Unified", "index3": "3 Unified"}
    cpu = f"flags\t: {HASWELL}\n"
    assert read_machine(cpu, sizes, levels) == Machine(256, False, False, 48 * 2**10, 2**21)
    assert read_machine(cpu, {**sizes, "index0": "nonsense"}, levels) == Machine(256, False, False, 32 * 2**10, 2**21)
    assert read_machine(cpu, {"index2": "1M"}, {}) == Machine(256, False, False, 32 * 2**10, 2**20)
    assert read_machine("model name\t: unknown\n", sizes, levels) is None


@pytest.mark.parametrize(("system", "processor"), [("Darwin", "x86_64"), ("Linux", "aarch64")])
def test_other_systems_have_no_machine(system, processor, monkeypatch):
    monkeypatch.setattr(machine.platform, "system", lambda: system)
    monkeypatch.setattr(machine.platform, "machine", lambda: processor)
    assert machine.this_machine.__wrapped__() is None


def test_this_machine_is_read_from_planted_files(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "CACHES", tmp_path / "cache")
    assert machine.this_machine.__wrapped__() is None
    (tmp_path / "cpuinfo").write_text(f"flags\t: {ZEN4}\n")
    assert machine.this_machine.__wrapped__() == Machine(512, True, False)
    for name, level, kind, size in (("index0", "1", "Data", "48K"), ("index2", "2", "Unified", "1024K")):
        for file, text in (("level", level), ("type", kind), ("size", size)):
            (tmp_path / "cache" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "cache" / name / file).write_text(f"{text}\n")
    assert machine.this_machine.__wrapped__() == Machine(512, True, False, 48 * 2**10, 2**20)


@pytest.mark.parametrize(("width", "dot", "tiles"), [(128, False, False), (1024, False, False), (256, True, False), (512, False, True)])
def test_a_machine_that_no_processor_is_is_refused(width, dot, tiles):
    with pytest.raises(ValueError, match="no processor has"):
        Machine(width, dot, tiles)
    with pytest.raises(ValueError, match="no processor has"):
        Machine(512, False, False, quick_dot=True)


@pytest.mark.parametrize(
    ("found", "features"),
    [(Machine(256, False, False), BASE), (Machine(512, False, False), BASE | WIDE), (Machine(512, True, False), BASE | DOT),
     (Machine(512, True, True), BASE | TILES)],
)  # fmt: skip
def test_the_compiler_may_use_what_the_machine_has_and_no_more(found, features):
    assert len(found.flags) == len(features)
    assert {flag.removeprefix("-m").replace("-", "").replace("_", "") for flag in found.flags} == {
        name.replace("_", "") for name in features
    }


def test_the_cache_of_a_machine_decides_how_far_ahead_is_read():
    near, far = (integer_source(Machine(256, False, False, first), 4, True) for first in (16 * 2**10, 2**20))
    assert "#define AHEAD 2048\n" in near
    assert "#define AHEAD 4096\n" in far
    assert "#define CHUNK 4\n" in bitmask_source(Machine(256, False, False, 2**15, 2**16), True)
