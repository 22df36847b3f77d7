"""Facts about the interpreter that runs this file, as one JSON line. Imports nothing but the standard library.

Runs in the target (CPython >= 3.9; older ones must still answer, so that the error can say what they are).
"""

import json
import os
import platform
import sys
import sysconfig


def distributions(names):
    """name -> version and dist-info folder, for those that are installed."""
    try:
        from importlib import metadata
    except ImportError:
        return {}
    found = {}
    for name in names:
        try:
            dist = metadata.distribution(name)
            found[name] = {"version": dist.version, "path": str(getattr(dist, "_path", ""))}
        except metadata.PackageNotFoundError:
            pass
    return found


def torch_facts():
    """What torch/version.py says, without importing torch (which takes seconds)."""
    from importlib.util import find_spec

    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = next(iter(spec.submodule_search_locations))
    names = {}  # type: ignore[var-annotated]
    try:
        with open(os.path.join(folder, "version.py"), encoding="utf-8") as stream:
            exec(compile(stream.read(), "version.py", "exec"), names)
    except Exception as error:
        return {"folder": folder, "error": "%s: %s" % (type(error).__name__, error)}
    return {
        "folder": folder,
        "version": str(names.get("__version__", "")),
        "cuda": names.get("cuda") or "",
        "hip": names.get("hip") or "",
    }


def main():
    paths = sysconfig.get_paths()
    json.dump(
        {
            "executable": sys.executable,
            "prefix": sys.prefix,
            "implementation": sys.implementation.name,
            "version": platform.python_version(),
            "soabi": sysconfig.get_config_var("SOABI") or "",
            "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
            "platform": sysconfig.get_platform(),
            "machine": platform.machine(),
            "site": paths["purelib"],
            "platlib": paths["platlib"],
            "include": paths["include"],
            "has_python_h": os.path.exists(os.path.join(paths["include"], "Python.h")),
            "externally_managed": sys.prefix == getattr(sys, "base_prefix", sys.prefix)
            and os.path.exists(os.path.join(paths["stdlib"], "EXTERNALLY-MANAGED")),
            "writable": os.access(paths["purelib"], os.W_OK),
            "torch": torch_facts(),
            "distributions": distributions(json.loads(sys.argv[1])),
        },
        sys.stdout,
    )


main()
