"""The files and folders that the answers of probe_target.py rest on, as one JSON line; `plain` is false where others
decide what can be imported, who may look anywhere.

Runs in the target, as probe_target.py does, with the same argument.
"""

import json
import os
import sys
import sysconfig

PLAIN = ("_frozen_importlib", "_frozen_importlib_external", "_distutils_hack", "_virtualenv", "builtins", "type")


def is_plain(finder):
    """Whether a finder of imports rests on nothing but sys.path, or on its own file, which is named."""
    module = getattr(finder, "__module__", "") or ""
    return module.split(".")[0] in PLAIN or module.startswith("__editable__")


def started():
    """The files of all modules that site brought in (sitecustomize, finders of editable installs) or Python itself."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return [name for name in files if name]


def main():
    loaded = started()
    plain = all(is_plain(finder) for finder in sys.meta_path)
    from importlib import metadata

    contents, stats = [], [os.path.realpath(sys.executable)]
    for folder in sys.path:
        contents += [folder, os.path.join(folder, "torch")]
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        contents += [os.path.join(folder, name) for name in names if name.endswith((".pth", ".egg-link"))]
    for name in json.loads(sys.argv[1]):
        try:
            path = str(getattr(metadata.distribution(name), "_path", ""))
        except metadata.PackageNotFoundError:
            continue
        contents += [path] + [os.path.join(path, part) for part in ("METADATA", "PKG-INFO", "RECORD")]
    # Only after what site brought in was listed: it is the target's own torch that is looked for.
    from importlib.util import find_spec

    spec = find_spec("torch")
    if spec is not None and spec.submodule_search_locations:
        folder = next(iter(spec.submodule_search_locations))
        contents += [folder, os.path.join(folder, "version.py")]
    home = os.path.dirname(sys.executable)
    contents += [os.path.join(place, "pyvenv.cfg") for place in (home, os.path.dirname(home))]
    contents.append(os.path.join(sysconfig.get_paths()["stdlib"], "EXTERNALLY-MANAGED"))
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as stream:
            mapped = {line.split(None, 5)[5].strip() for line in stream if "/libpython" in line}
    except OSError:
        mapped = set()
        plain = False
    stdlib = os.path.realpath(sysconfig.get_paths()["stdlib"]) + os.sep
    for name in loaded:
        if name.startswith(stdlib) and "packages" not in name:
            stats.append(name)
        else:
            contents.append(name)
    json.dump({"plain": plain, "contents": sorted(set(contents)), "stats": sorted(mapped.union(stats))}, sys.stdout)


main()
