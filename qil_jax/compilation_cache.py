"""The folder in which programs keep what XLA has compiled, so that the next start compiles nothing."""

import hashlib
import os
import platform
from pathlib import Path

from qil_jax.errors import complain

ELSEWHERE = "JAX_COMPILATION_CACHE_DIR"
"""The environment variable by which JAX itself is told the folder; empty: nothing is kept."""
CPU = Path("/proc/cpuinfo")


def use_compilation_cache() -> Path | None:
    """Let JAX keep compiled programs in the user's cache folder, unless the environment names another folder.

    JAX checks what it reads there: entries are found by a hash of the program, the devices, the options and JAX's
    version, and one that cannot be read is compiled again. A folder that cannot be used costs a warning only.

    Returns:
      The folder; None if the environment names one, or none can be used.
    """
    if ELSEWHERE in os.environ:
        return None
    try:
        folder = cache_folder()
    except RuntimeError:  # no HOME, and no entry of this user among the system's
        complain(f"warning: no home folder; compiled programs are not kept: set {ELSEWHERE} to a folder")
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        usable, reason = os.access(folder, os.W_OK | os.X_OK), "not writable"
        if usable and folder.stat().st_uid != os.geteuid():
            usable, reason = False, "another user's"
    except OSError as error:
        usable, reason = False, error.strerror or str(error)
    if not usable:
        complain(f"warning: {folder}: {reason}; compiled programs are not kept: set {ELSEWHERE} to another folder")
        return None
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def cache_folder() -> Path:
    """The user's cache folder for programs that this machine compiles; a home may be shared by unlike CPUs.

    Raises:
      RuntimeError: if the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    lines = CPU.read_text(errors="replace").splitlines() if CPU.is_file() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    machine = f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
    return root / "qil_jax" / "compiled" / machine
