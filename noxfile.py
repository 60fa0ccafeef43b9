"""Every task of the repository, each in an environment of its own that it sets up itself.

    python -m nox -s tests              build every wheel, install them, run every test against what was installed
    python -m nox -s demo               train the example model here and now
    python -m nox -s lint types docs build shape bench

Packages are found by glob under ``packages/``; nothing here names one, except the demo, which says what it shows.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import graphlib
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / "constraints.txt"
PACKAGES = {path.parent.name: path.parent for path in sorted(ROOT.glob("packages/*/pyproject.toml"))}

EXAMPLE_REQUIREMENTS = ("tokenizers", "matplotlib")
LIBRARIES = ("transformers", "accelerate", "peft", "trl", "datasets", "lightning", "packaging")
"""Written for DeepSpeed, or for those; they run over our names unmodified."""
TEST_REQUIREMENTS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", *LIBRARIES, *EXAMPLE_REQUIREMENTS)
ALONE_REQUIREMENTS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")
DEMO_WHEELS = ("ds-core", "ds-zero", "ds-accel-cpu")
COMPAT_WHEELS = (*DEMO_WHEELS, "ds-deepspeed")
COMPAT_REQUIREMENTS = ("transformers", "accelerate", "tokenizers")
PEER_REQUIREMENTS = ("deepspeed==0.19.8",)
OTHER_TORCH = ("2.10.0", "2.14.1")
MATRIX_WHEELS = ("ds-core", "ds-accel-cpu")
XPU_RUNTIMES = {"8": "2025.3.2", "9": "2026.2.0"}  # libsycl to the release of intel-sycl-rt that has it
SANITIZED_LEVELS = ("x86_64_v2", "x86_64_v4_bf16")  # both ends of what is in the sources; each takes minutes to build
SANITIZED_TESTS = ("test_cpu_pool.py", "test_uring_engine.py")  # of ds-accel-cpu: what else has C++ of its own

QUICK_BUILD = ("cmake.define.DSK_ROCM_ARCHITECTURES=gfx90a",)  # not for all GPUs that a release serves
SANITIZED_BUILD = "cmake.define.DSK_EMULATE_SANITIZED=ON"
TEST_BUILD = ("cmake.define.DSK_ROCM=OFF", SANITIZED_BUILD)  # hipcc takes minutes: `nox -s alone` runs it
RELEASE_BUILD = ("cmake.define.DSK_CUDA_ARCHITECTURES=release",)

VENDORS = {"vendor-vulkan": "torchvulkan==0.2.1", "vendor-rgpu": "rgpu==0.1.1"}
"""Examples over torch devices of strangers, and the package that brings the device."""

QUIET_ENV = {
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
TEST_ENV = {
    **QUIET_ENV,
    "DS_PLUGINS_STRICT": "1",
    "DS_TEST_INSTALLED": "1",  # conftest.py then refuses to test a source tree
    "PYTHONSAFEPATH": "1",  # never import from the working directory
    "PYTHONPATH": "",
}


# --- building and installing ------------------------------------------------------------------------------------


def requirement_name(requirement: str) -> str:
    """``"ds-core~=0.1; python_version > '3'"`` -> ``"ds-core"``."""
    name = requirement
    for mark in "[]<>=!~; (@":
        name = name.partition(mark)[0]
    return name.strip().lower().replace("_", "-")


def third_party(dists: Iterable[str], *, extras: bool = True) -> list[str]:
    """What the named packages need from the index, with or without their extras; never each other."""
    found: dict[str, None] = {}
    for dist in dists:
        project = nox.project.load_toml(PACKAGES[dist] / "pyproject.toml")["project"]
        wanted = list(project.get("dependencies", []))
        for items in project.get("optional-dependencies", {}).values():
            wanted += items if extras else []
        found.update(dict.fromkeys(item for item in wanted if requirement_name(item) not in PACKAGES))
    return sorted(found)


def install(session: nox.Session, *requirements: str, constraints: Path = CONSTRAINTS) -> None:
    """Install from the index, steadied by the constraints; torch goes first so that nothing else picks one."""
    torch_first = [item for item in requirements if requirement_name(item) == "torch"]
    if torch_first:
        session.install("-c", str(constraints), *torch_first)
    session.install("-c", str(constraints), *requirements)


def project_name(dist: str) -> str:
    """The distribution's name; that of the folder, but for the package of DeepSpeed's names, which has its name."""
    name: str = nox.project.load_toml(PACKAGES[dist] / "pyproject.toml")["project"]["name"]
    return name


def is_native(dist: str) -> bool:
    """Whether building this package runs CMake and a compiler."""
    build_system = nox.project.load_toml(PACKAGES[dist] / "pyproject.toml")["build-system"]
    return "scikit_build_core" in build_system["build-backend"]


def build_requires(dist: str) -> list[str]:
    """What the package's ``[build-system]`` table asks for."""
    requires: list[str] = nox.project.load_toml(PACKAGES[dist] / "pyproject.toml")["build-system"]["requires"]
    return requires


def build_requirements(dists: Iterable[str]) -> list[str]:
    """Build back ends of the packages, and the CMake and ninja of the index for those that compile."""
    found: dict[str, None] = {}
    for dist in dists:
        found.update(dict.fromkeys(item for item in build_requires(dist) if requirement_name(item) not in PACKAGES))
        if is_native(dist):
            found.update(dict.fromkeys(["cmake", "ninja"]))
    return sorted(found)


def build_order(dists: Iterable[str]) -> list[str]:
    """The packages, each after those it needs to be built (a header of ds-core, say)."""
    graph = {dist: {requirement_name(item) for item in build_requires(dist)} & set(dists) for dist in dists}
    return list(graphlib.TopologicalSorter(graph).static_order())


def workspace(session: nox.Session) -> Path:
    """A folder under ``build/`` for what this session builds."""
    folder = ROOT / "build" / Path(session.virtualenv.location).name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_wheels(session: nox.Session, dists: Sequence[str], *settings: str) -> None:
    """Build and install a wheel of each package from the tree as it is now; only the compiler's objects outlive a run.

    The build back ends live in the session's own environment, so nothing is set up twice, and each session has its
    own folder for objects because CMake remembers the tools it was configured with.

    Args:
        session: whose environment gets the wheels.
        dists: the packages.
        settings: ``NAME=VALUE`` of scikit-build-core, for those that compile.
    """
    install(session, *build_requirements(dists))
    work = workspace(session)
    house = work / "wheelhouse"
    shutil.rmtree(house, ignore_errors=True)
    for dist in build_order(dists):
        command = ["pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
        if is_native(dist):
            command.append(f"--config-settings=build-dir={work / dist / '{wheel_tag}'}")
            command += [f"--config-settings={setting}" for setting in settings]
        session.run("python", "-m", *command, "-w", str(house / dist), str(PACKAGES[dist]), env=compiler_cache())
        (wheel,) = (house / dist).glob("*.whl")
        session.install("--no-index", "--no-deps", "--force-reinstall", str(wheel))


def compiler_cache() -> dict[str, str]:
    """Variables that make CMake use ccache where it is installed; paths are kept relative, so any checkout will do."""
    if shutil.which("ccache") is None:
        return {}
    names = ("CMAKE_C_COMPILER_LAUNCHER", "CMAKE_CXX_COMPILER_LAUNCHER")
    return {**dict.fromkeys(names, "ccache"), "CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1"}


def install_wheels(
    session: nox.Session,
    dists: Sequence[str],
    *extra: str,
    constraints: Path = CONSTRAINTS,
    settings: Sequence[str] = QUICK_BUILD,
) -> None:
    """Build the packages and put exactly those wheels, and no older ones, in the session's environment."""
    install(session, *third_party(dists), *extra, constraints=constraints)
    remove_stale(session, dists)
    build_wheels(session, dists, *settings)
    session.run("python", "-m", "pip", "check", silent=True)


def remove_stale(session: nox.Session, dists: Sequence[str]) -> None:
    """Uninstall wheels of ours that a reused environment holds and this run does not build."""
    site = session.run("python", "-c", "import sysconfig; print(sysconfig.get_path('platlib'))", silent=True, log=False)
    present = {
        info.name.partition("-")[0].lower().replace("_", "-")
        for pattern in ("ds_*.dist-info", "deepspeed-*+ds*.dist-info")
        for info in Path(str(site).strip()).glob(pattern)
    }
    stale = sorted(present - {project_name(dist) for dist in dists})
    if stale:
        session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", *stale)


def sources() -> list[str]:
    """``packages/<dist>/src`` of every package."""
    return [str(path / "src") for path in PACKAGES.values()]


def native_sources() -> list[str]:
    """C and C++ of every package, without what a build left."""
    kinds = ("h", "hpp", "c", "cpp", "cu", "cl")
    places = ("packages/*/**", "examples/vendor-plugin/csrc/**")
    found = [path for kind in kinds for place in places for path in ROOT.glob(f"{place}/*.{kind}")]
    return sorted(str(path) for path in found if "build" not in path.relative_to(ROOT).parts)


@contextlib.contextmanager
def only_the_child_is_interrupted() -> Iterator[None]:
    """Leave Ctrl-C to the program that runs: it saves what it has and ends, and nox waits for it."""
    # A handler that does nothing, for an ignored signal would stay ignored in the child.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- checks -------------------------------------------------------------------------------------------------------


@nox.session
def tests(session: nox.Session) -> None:
    """Build every wheel, install them, run every test against the installed wheels."""
    install_wheels(session, list(PACKAGES), *TEST_REQUIREMENTS, settings=TEST_BUILD)
    session.run("pytest", *session.posargs, env=TEST_ENV)


@nox.session(name="torch-matrix", default=False)
@nox.parametrize("torch", OTHER_TORCH)
def torch_matrix(session: nox.Session, torch: str) -> None:
    """The very wheels that were built beside our torch, installed beside another one, and the tests of the ops there.

    Nothing is compiled in the other environment: what passes is the file that users of that torch would install.
    Releases other than ours may come from the index as builds for another device, gigabytes large.
    """
    wheels = built_wheels(session)
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if requirement_name(line) != "torch"]
    constraints = workspace(session) / "constraints.txt"
    constraints.write_text("\n".join([f"torch=={torch}", *lines, ""]))
    install(session, *third_party(MATRIX_WHEELS), *ALONE_REQUIREMENTS, constraints=constraints)
    session.install("--no-index", "--no-deps", "--force-reinstall", *map(str, wheels))
    session.run("python", "-m", "pip", "check", silent=True)
    found = session.run("python", "-c", "import torch; print(torch.__version__)", silent=True, log=False)
    if not str(found).strip().startswith(torch):
        session.error(f"asked for torch {torch}, found {found}")
    ops = sorted(str(path) for path in (PACKAGES["ds-core"] / "tests").glob("test_ops_*.py"))
    tests = session.posargs or [str(PACKAGES["ds-accel-cpu"] / "tests"), *ops]
    session.run("pytest", *tests, env=tests_env(MATRIX_WHEELS))


def tests_env(dists: Iterable[str]) -> dict[str, str]:
    """Environment of tests where only some packages are installed; conftest.py refuses sources in their place."""
    return {**TEST_ENV, "DS_TEST_INSTALLED": ",".join(dists)}


def built_wheels(session: nox.Session) -> list[Path]:
    """The wheels of the matrix, built once a run of nox in an environment that holds our own torch."""
    house = ROOT / "build" / "torch-matrix-wheels"
    stamp = house / "run"
    if not stamp.exists() or stamp.read_text() != str(os.getpid()):
        shutil.rmtree(house, ignore_errors=True)
        install(session, *third_party(MATRIX_WHEELS))  # our torch: what the wheel is built beside
        build_wheels(session, MATRIX_WHEELS)
        for wheel in (workspace(session) / "wheelhouse").rglob("*.whl"):
            house.mkdir(parents=True, exist_ok=True)
            shutil.copy(wheel, house)
        stamp.write_text(str(os.getpid()))
    return sorted(house.glob("*.whl"))


@nox.session(default=False)
def alone(session: nox.Session) -> None:
    """Each accelerator wheel with ds-core and nothing else of ours: installs, says why it cannot be used, is tested.

    Arguments after ``--`` name the wheels; all by default.
    """
    dists = session.posargs or [dist for dist in PACKAGES if dist.startswith("ds-accel-")]
    for dist in dists:
        install_wheels(session, ["ds-core", dist], *ALONE_REQUIREMENTS, settings=(*QUICK_BUILD, SANITIZED_BUILD))
        session.run("python", "tools/check_alone.py", dist, env=QUIET_ENV)
        session.run("pytest", str(PACKAGES[dist] / "tests"), env=tests_env(["ds-core", dist]))


@nox.session(default=False)
def sanitize(session: nox.Session) -> None:
    """Fuzz every kernel under AddressSanitizer and UBSan; arguments after ``--`` go to fuzz/run.py.

    The wheel is built with both in all of its C++, so the tests named in SANITIZED_TESTS run on sanitized modules too.
    """
    dists = ("ds-core", "ds-accel-cpu")
    package = PACKAGES["ds-accel-cpu"]
    install(session, *third_party(dists), "pytest", "pytest-timeout", "hypothesis")
    remove_stale(session, dists)
    levels = f"cmake.define.DSK_LEVELS={';'.join(SANITIZED_LEVELS)}"
    build_wheels(session, dists, "cmake.define.DSK_SANITIZE=ON", levels, "install.strip=false")
    check_elementary(session, package)
    # libstdc++ too: AddressSanitizer looks for the real throw when it starts, and Python itself has none.
    names = ("libasan.so", "libstdc++.so")
    found = [session.run("g++", f"-print-file-name={name}", external=True, silent=True) for name in names]
    env = {
        **QUIET_ENV,
        "LD_PRELOAD": " ".join(str(path).strip() for path in found),
        # Python keeps memory to its end on purpose; with malloc each of its objects has a red zone, too.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:strict_init_order=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "2",
    }
    session.run("python", str(package / "fuzz" / "run.py"), *session.posargs, env=env)
    if not session.posargs:
        tests = [str(package / "tests" / name) for name in SANITIZED_TESTS]
        session.run("pytest", "-q", "-p", "no:cacheprovider", *tests, env=env)


def check_elementary(session: nox.Session, package: Path) -> None:
    """The exponential and its kin against the math library, and the same bits at two ends of the levels."""
    include = PACKAGES["ds-core"] / "src" / "ds_core" / "include"
    program = workspace(session) / "elementary"
    flags = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fsanitize=undefined"]
    places = [f"-I{package / 'csrc' / 'kernels'}", f"-I{include}", str(package / "csrc" / "checks" / "elementary.cpp")]
    found = set()
    for level in ("x86-64-v2", "x86-64-v3"):
        arguments = [*flags, f"-march={level}", "-fno-sanitize-recover=all", *places, "-o", str(program)]
        session.run("g++", *arguments, external=True)
        found.add(session.run(str(program), "1009", external=True, silent=True))
    if len(found) > 1:
        session.error(f"elementary functions differ between levels: {found}")
    session.log(found.pop())


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, the import contracts, and the formatting of C++."""
    install(session, "ruff", "import-linter", "clang-format")
    checks = [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["python", "tools/check_imports.py"],
    ]
    if native_sources():
        checks.append(["clang-format", "--dry-run", "-Werror", *native_sources()])
    failed = []
    for check in checks:
        try:
            session.run(*check)
        except nox.command.CommandFailed:
            failed.append(" ".join(check[:3]))
    if failed:
        session.error(f"failed: {', '.join(failed)}")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, over the sources of every package and the tools."""
    install(session, *third_party(PACKAGES), "mypy", "types-psutil")
    session.run("mypy", *sources(), "tools")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; its reference pages are generated from the installed wheels."""
    install_wheels(session, list(PACKAGES), "mkdocs", "mkdocs-material")
    session.run("python", "tools/gen_reference.py", "--out", "docs/reference", env=QUIET_ENV)
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def shape(session: nox.Session) -> None:
    """Report the four numbers of the shape of the code."""
    session.run("python", "tools/shape.py", *session.posargs)


@nox.session(default=False)
def xpu(session: nox.Session) -> None:
    """Build ds-accel-xpu with its kernels, execute every case on Intel's OpenCL device for CPUs; downloads 500 MB.

    Arguments after ``--`` are ops; without any, the tests of the package run, too.
    """
    dists = ("ds-core", "ds-accel-xpu")
    package = PACKAGES["ds-accel-xpu"]
    install(session, *third_party(dists), *TEST_REQUIREMENTS, f"intel-opencl-rt=={XPU_RUNTIMES[max(XPU_RUNTIMES)]}")
    remove_stale(session, dists)
    roots = {version: sycl_runtime(session, release) for version, release in XPU_RUNTIMES.items()}
    places = f"cmake.define.DSK_SYCL_ROOTS={';'.join(str(root) for root in roots.values())}"
    build_wheels(session, dists, "cmake.define.DSK_CPU_QUEUE=ON", places)
    here = Path(session.virtualenv.location) / "lib"
    for version, root in roots.items():
        env = {
            **TEST_ENV,
            "OCL_ICD_FILENAMES": str(here / "libintelocl.so"),
            "LD_LIBRARY_PATH": f"{root / 'lib'}{os.pathsep}{here}",
        }
        session.run("python", str(package / "conformance" / "run.py"), version, *session.posargs, env=env)
    if not session.posargs:
        # Without the wheels of other packages, which conftest.py would ask for.
        session.run("pytest", "-q", str(package / "tests"), env={**env, "DS_TEST_INSTALLED": "0"})


def sycl_runtime(session: nox.Session, release: str) -> Path:
    """A folder with the headers and libraries of one release of intel-sycl-rt, made at first use."""
    folder = ROOT / "build" / f"intel-sycl-rt-{release}"
    if not (folder / "include" / "sycl" / "sycl.hpp").exists():
        command = ["pip", "install", "--quiet", "--ignore-installed", "--prefix", str(folder)]
        session.run("python", "-m", *command, f"intel-sycl-rt=={release}")
    return folder


@nox.session(default=False)
def vendors(session: nox.Session) -> None:
    """Train on torch devices of strangers through wheels of their own; needs Debian's software Vulkan driver.

    One at a time, for torch has room for one such device. Arguments after ``--`` are names of examples.
    """
    driver = vulkan_driver(session)
    dists = ("ds-core", "ds-zero", "ds-accel-cpu")
    session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", *map(requirement_name, VENDORS.values()))
    install_wheels(session, dists, "pytest", "pytest-timeout", "hypothesis")
    for example in session.posargs or VENDORS:
        folder = ROOT / "examples" / example
        # Without what it declares: rgpu asks for a later torch, and works with ours.
        session.install("--no-deps", VENDORS[example])
        install(session, *nox.project.load_toml(folder / "pyproject.toml")["build-system"]["requires"])
        session.install("--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall", str(folder))
        env = {**QUIET_ENV, "DS_PLUGINS_STRICT": "1", "VK_ICD_FILENAMES": str(driver)}
        env["PYTHONPATH"] = str(folder / "tests")
        session.run("pytest", "-q", "-p", "no:cacheprovider", "--timeout=600", str(folder / "tests"), env=env)
        if (folder / "expected.txt").exists():
            conform = ["accel", "test", example.removeprefix("vendor-"), "--quiet", "--timeout", "300"]
            session.run("ds", *conform, "--xfail", str(folder / "expected.txt"), env=env)
        own = nox.project.load_toml(folder / "pyproject.toml")["project"]["name"]
        backend = requirement_name(VENDORS[example])
        session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", own, backend)


def vulkan_driver(session: nox.Session) -> Path:
    """The file that names Mesa's software driver to the Vulkan loader; ends the session where either is missing."""
    found = sorted(Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json"))
    missing = [] if found else ["Mesa's software driver (mesa-vulkan-drivers)"]
    if ctypes.util.find_library("vulkan") is None:
        missing.append("the Vulkan loader libvulkan.so.1 (libvulkan1)")
    if missing:
        session.error(f"missing: {', '.join(missing)}; run: apt-get install mesa-vulkan-drivers libvulkan1")
    return found[0]


@nox.session(default=False)
def emulate(session: nox.Session) -> None:
    """Run every op's cases on emulated processors; needs cross compilers and qemu, and says what it could not run."""
    install_wheels(session, ["ds-core", "ds-accel-cpu"])
    folder = workspace(session) / "emulated"
    session.run("python", "tools/emulate.py", "--build", str(folder), *session.posargs, env=QUIET_ENV)


# --- programs -----------------------------------------------------------------------------------------------------


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Train the example language model on this machine; arguments after ``--`` go to the program."""
    install_wheels(session, DEMO_WHEELS, *EXAMPLE_REQUIREMENTS)
    with only_the_child_is_interrupted():
        session.run(
            "python",
            "examples/gpt_text/run_demo.py",
            *session.posargs,
            env={"TOKENIZERS_PARALLELISM": "false", "GLOO_SOCKET_IFNAME": "lo"},
            success_codes=[0, 130],  # 130: stopped with Ctrl-C, and saved
        )


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmarks, with the peers in an environment of their own."""
    install_wheels(session, list(PACKAGES), "matplotlib")
    try:
        peers = ["--peers-python", str(peers_python(session))]
    except nox.command.CommandFailed:
        peers = ["--peers-missing", f"{', '.join(PEER_REQUIREMENTS)} could not be installed here"]
    session.run("python", "benchmarks/run.py", *peers, *session.posargs, env=QUIET_ENV)


@nox.session(name="bench-compat", default=False)
def bench_compat(session: nox.Session) -> None:
    """The losses of two scripts under deepspeed and under our wheel of that name, at every stage, in fp32 and bf16."""
    install_wheels(session, COMPAT_WHEELS, *COMPAT_REQUIREMENTS)
    peers = ["--peers-python", str(peers_python(session, *COMPAT_REQUIREMENTS))]
    session.run("python", "benchmarks/compat.py", *peers, *session.posargs, env=QUIET_ENV)


@nox.session(default=False)
def exactness(session: nox.Session) -> None:
    """Run the exactness grid, check golden values, write its table; ``-- --accept`` records new golden values."""
    install_wheels(session, list(PACKAGES))
    session.run("python", "benchmarks/exactness.py", *session.posargs, env=QUIET_ENV)


@nox.session(default=False)
def golden(session: nox.Session) -> None:
    """Write the golden checkpoints of DeepSpeed anew, with the peers in an environment of their own."""
    install(session, "torch", "safetensors", "numpy")
    session.run("python", "tools/golden_deepspeed.py", str(peers_python(session)), *session.posargs, env=QUIET_ENV)


def peers_python(session: nox.Session, *extra: str) -> Path:
    """Python of the environment that holds the peers and `extra`, made at first use."""
    folder = ROOT / ".nox" / "bench-peers"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        session.run(sys.executable, "-m", "virtualenv", "--quiet", str(folder), external=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS)]
    session.run(*pip, "torch", "numpy", "setuptools", "wheel", "ninja", external=True)
    session.run(*pip, "--no-build-isolation", *PEER_REQUIREMENTS, *extra, external=True, env={"DS_BUILD_OPS": "0"})
    return python


# --- release ------------------------------------------------------------------------------------------------------


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Source distributions of every package, and wheels built from those, in ``dist/``; GPU kernels for all GPUs."""
    install(session, "build", *build_requirements(PACKAGES))
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for name in build_order(PACKAGES):
        command = ["build", "--no-isolation", "--skip-dependency-check", "--outdir", str(dist)]
        command += [f"--config-setting={setting}" for setting in RELEASE_BUILD if is_native(name)]
        session.run("python", "-m", *command, str(PACKAGES[name]))
        (wheel,) = dist.glob(f"{project_name(name).replace('-', '_')}-*.whl")
        session.install("-c", str(CONSTRAINTS), "--no-deps", "--force-reinstall", str(wheel))
