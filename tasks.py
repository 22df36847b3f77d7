"""The graph of sagewheels, one task a step:

    auto -> stack -> fetch -> (verify | build -> upload) -> smoke

Every task runs alone, can be repeated, and can be killed at any moment. Flags beat the environment, which beats .env.
"""

from __future__ import annotations

import sys
from itertools import chain

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from sagewheels import run

_HELP = {
    "arch": "compute capabilities, such as 12.0 or '8.9;12.0' (TORCH_CUDA_ARCH_LIST; default: this machine's GPUs)",
    "python": "the interpreter to install into (PYTHON_BIN; default: the active environment, else python3)",
    "store": "hf://datasets/owner/name@branch/folder, or a directory (SAGE_STORE; default: HF_REPO_ID)",
    "manifest": "build manifest: a name in manifests/ or the path of a .toml (SAGE_MANIFEST)",
    "json": "one JSON object on stdout, when it ends (manifests/report.schema.json); what people read goes to stderr",
    "dry_run": "print the plan with the reason for each step, change nothing",
    "wheel": "a wheel of the wheelhouse (default: the best fit there)",
    "force": "compile even when the wheelhouse has this build key",
    "comfyui": "the folder of a ComfyUI, whose Python is the one to install into (COMFYUI_PATH)",
    "offline": "ask no Hub, package index or git server: what is on this machine must do (SAGE_OFFLINE)",
    "full": "also the long checks: streams, graphs, odd lengths, a second GPU, torch.compile (minutes)",
    "rebuild": "compile even when a wheel fits",
    "no_wait": "compile though another machine compiles the same wheel, and claim nothing",
    "all": "also the wheelhouse, the logs and the compiled objects in WORK_DIR",
    "sign": "make a key and a list of signers where there is none, and sign the index with it",
}


def _flags(*names: str) -> dict[str, str]:
    return {name: _HELP[name] for name in names}


@task(
    default=True,
    help=_flags("arch", "python", "comfyui", "store", "manifest", "offline", "json", "dry_run", "rebuild", "no_wait"),
)
def auto(
    c: Context,
    arch: str | None = None,
    python: str | None = None,
    comfyui: str | None = None,
    store: str | None = None,
    manifest: str | None = None,
    offline: bool = False,
    json: bool = False,
    dry_run: bool = False,
    rebuild: bool = False,
    no_wait: bool = False,
) -> None:
    """Make this machine run proven attention: stack, fetch, (verify | build, upload), smoke.

    Example: sagewheels auto --python ~/ComfyUI/venv/bin/python
    """
    from sagewheels import auto as graph
    from sagewheels import closing

    told = run.job(
        c,
        arch=arch,
        python=python,
        comfyui=comfyui,
        store=store,
        manifest=manifest,
        offline=offline,
        dry_run=dry_run,
        as_json=json,
    )
    with told as job, closing.panel(job):
        graph.auto(job, rebuild=rebuild, no_wait=no_wait)


@task(help=_flags("arch", "python", "comfyui", "store", "manifest", "offline", "json", "dry_run"))
def install(
    c: Context,
    arch: str | None = None,
    python: str | None = None,
    comfyui: str | None = None,
    store: str | None = None,
    manifest: str | None = None,
    offline: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """The same without a compiler: stack, fetch, verify, smoke; exit 3 when the store has nothing.

    Example: sagewheels install --store /mnt/usb/wheels
    """
    from sagewheels import auto as graph
    from sagewheels import closing

    told = run.job(
        c,
        arch=arch,
        python=python,
        comfyui=comfyui,
        store=store,
        manifest=manifest,
        offline=offline,
        dry_run=dry_run,
        as_json=json,
    )
    with told as job, closing.panel(job):
        graph.install(job)


@task(help=_flags("arch", "python", "comfyui", "store", "manifest", "offline", "dry_run"))
def stack(
    c: Context,
    arch: str | None = None,
    python: str | None = None,
    comfyui: str | None = None,
    store: str | None = None,
    manifest: str | None = None,
    offline: bool = False,
    dry_run: bool = False,
) -> None:
    """1. A CUDA PyTorch and Triton that suit GPU and driver; what is good is kept.

    Example: sagewheels stack --dry-run
    """
    from sagewheels import steps

    with run.job(
        c, arch=arch, python=python, comfyui=comfyui, store=store, manifest=manifest, offline=offline, dry_run=dry_run
    ) as job:
        steps.do_stack(job)


@task(help=_flags("arch", "python", "comfyui", "store", "manifest", "offline", "json", "dry_run"))
def fetch(
    c: Context,
    arch: str | None = None,
    python: str | None = None,
    comfyui: str | None = None,
    store: str | None = None,
    manifest: str | None = None,
    offline: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """2. The best wheel of your store into the wheelhouse, or why none fits (exit 3).

    Example: sagewheels fetch --arch 12.0
    """
    from sagewheels import steps

    with run.job(
        c,
        arch=arch,
        python=python,
        comfyui=comfyui,
        store=store,
        manifest=manifest,
        offline=offline,
        dry_run=dry_run,
        as_json=json,
    ) as job:
        steps.do_fetch(job)


@task(help=_flags("arch", "python", "comfyui", "manifest", "wheel", "dry_run"))
def verify(
    c: Context,
    arch: str | None = None,
    python: str | None = None,
    comfyui: str | None = None,
    manifest: str | None = None,
    wheel: str = "",
    dry_run: bool = False,
) -> None:
    """3a. Check a wheel of the wheelhouse against its manifest and this machine, then install it (exit 4: refused).

    Example: sagewheels verify
    """
    from sagewheels import steps

    with run.job(c, arch=arch, python=python, comfyui=comfyui, manifest=manifest, dry_run=dry_run) as job:
        steps.do_verify(job, steps.choose(job, wheel))


_ELSEWHERE = {
    "on": "hf-jobs: compile on a rented machine of Hugging Face, which costs money; the wheel comes from the store",
    "flavor": "its hardware (default: cpu-upgrade, 8 cores); no GPU is needed",
    "timeout": "how long it may run, such as 90m (default: 2h)",
    "namespace": "who pays: a user or an organization (default: the owner of HF_TOKEN)",
    "detach": "end once it is submitted; the same command without this follows it",
}


@task(help={**_flags("arch", "python", "comfyui", "manifest", "force", "dry_run"), **_ELSEWHERE})
def build(
    c: Context,
    arch: str | None = None,
    python: str | None = None,
    comfyui: str | None = None,
    manifest: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    on: str = "",
    flavor: str = "",
    timeout: str = "",
    namespace: str = "",
    detach: bool = False,
) -> None:
    """3b. Compile the pinned source with its patches into the wheelhouse; needs no GPU.

    Example: sagewheels build --arch 12.0
    Compiled anew, though its wheel is there: sagewheels build --arch 12.0 --force
    Compiled elsewhere: HF_TOKEN=... sagewheels build --arch 12.0 --on hf-jobs
    """
    from sagewheels import elsewhere, steps

    # Whoever follows a job for an hour keeps no other run waiting.
    with run.job(
        c, arch=arch, python=python, comfyui=comfyui, manifest=manifest, dry_run=dry_run, locked=not on
    ) as job:
        wish = elsewhere.asked(on, flavor=flavor, timeout=timeout, namespace=namespace, detach=detach, force=force)
        steps.do_build(job, force=force) if wish is None else steps.do_build_elsewhere(job, wish)


_MATRIX = {
    "python": "Pythons, such as 3.10,3.12; uv finds or downloads them",
    "torch": "torch releases, such as 2.11,2.15 (the newest of each that TORCH_CHANNEL has) or 2.11.0",
    "arch": "a wheel for each of 8.9,12.0, or one for both of '8.9;12.0' (TORCH_CUDA_ARCH_LIST)",
    "json": "print the wheels to build, for the strategy.matrix of GitHub Actions, and nothing else",
}


@task(help={**_MATRIX, **_flags("store", "manifest", "dry_run")})
def matrix(
    c: Context,
    python: str = "",
    torch: str = "",
    arch: str | None = None,
    store: str | None = None,
    manifest: str | None = None,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Wheels for many Pythons, torches and archs: what the store lacks is built and published; a coverage table.

    Example: sagewheels matrix --python 3.10,3.12 --torch 2.11 --arch 8.9,12.0 --dry-run
    For GitHub Actions: sagewheels matrix --python 3.10,3.12 --torch 2.11 --arch 8.9,12.0 --json
    """
    from sagewheels import matrix as many

    # What only plans takes no lock, which would say on stdout for whom it waits.
    with run.job(c, arch=arch, store=store, manifest=manifest, dry_run=dry_run, locked=not json) as job:
        many.matrix(job, python, torch, as_json=json)


_FLEET = {
    "hosts": "a file (- is stdin), on each line user@host:port or a name of ~/.ssh/config, and KEY=value ...",
    "task": "what to run there, with its flags: install, doctor, 'smoke --full' ...",
    "parallel": "hosts at once (default: all, up to 8)",
    "retry": "more tries for a host that could not be reached or ended with exit 7",
    "timeout": "minutes for each try on a host, after which it is told to stop",
    "failed": "only the hosts on which the last run failed (LOG_DIR/fleet)",
    "accept_new": "take host keys that are not known yet, as ssh's StrictHostKeyChecking=accept-new",
    "ssh_config": "in the place of ~/.ssh/config",
    "json": "one JSON object on stdout, and nothing else",
}


@task(auto_shortflags=False, help={**_FLEET, **_flags("arch", "store", "manifest", "dry_run")})
def fleet(
    c: Context,
    hosts: str = "",
    task: str = "auto",
    parallel: str = "",
    retry: str = "1",
    timeout: str = "120",
    failed: bool = False,
    accept_new: bool = False,
    ssh_config: str = "",
    arch: str | None = None,
    store: str | None = None,
    manifest: str | None = None,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """The same on many machines over SSH, bare ones too: a log for each, the exit code of the first that failed.

    Example: sagewheels fleet --hosts hosts.txt
    Again where it failed: sagewheels fleet --hosts hosts.txt --failed
    """
    from sagewheels import fleet as many

    flags = {"parallel": parallel, "retry": retry, "timeout": timeout, "ssh_config": ssh_config}
    with run.job(c, arch=arch, store=store, manifest=manifest, dry_run=dry_run, locked=False, as_json=json) as job:
        tasks = namespace.task_names
        many.fleet(job, hosts, task=task, tasks=tasks, failed=failed, accept_new=accept_new, **flags)


_GENERATE = {
    "kind": "sky: a task of SkyPilot; actions: a workflow of GitHub Actions that builds what the store lacks",
    "out": "the file to write (default: print it)",
    "python": "actions: Pythons, such as 3.10,3.12",
    "torch": "actions: torch releases, such as 2.11,2.15",
}


@task(positional=["kind"], help={**_GENERATE, **_flags("arch", "store", "manifest", "dry_run")})
def generate(
    c: Context,
    kind: str,
    out: str = "",
    python: str = "3.12",
    torch: str = "2.11",
    arch: str | None = None,
    store: str | None = None,
    manifest: str | None = None,
    dry_run: bool = False,
) -> None:
    """sky.yaml for SkyPilot, or a workflow for GitHub Actions, from your settings; no secret is in them.

    Example: sagewheels generate sky --arch 12.0 --out sky.yaml
    For GitHub: sagewheels generate actions --python 3.10,3.12 --torch 2.11 --arch 8.9,12.0 --out wheels.yml
    """
    from sagewheels import generate as maker

    with run.job(c, arch=arch, store=store, manifest=manifest, dry_run=dry_run, locked=False) as job:
        maker.generate(job, kind, pythons=python, torches=torch, out=out)


@task(aliases=["publish"], help=_flags("arch", "python", "store", "manifest", "wheel", "dry_run"))
def upload(
    c: Context,
    arch: str | None = None,
    python: str | None = None,
    store: str | None = None,
    manifest: str | None = None,
    wheel: str = "",
    dry_run: bool = False,
) -> None:
    """3c. Publish a wheel of the wheelhouse and its manifest in one commit.

    Example: HF_TOKEN=... sagewheels upload
    """
    from sagewheels import steps

    with run.job(c, arch=arch, python=python, store=store, manifest=manifest, dry_run=dry_run) as job:
        steps.do_upload(job, steps.choose(job, wheel), asked=True, named=bool(wheel))


@task(help=_flags("python", "comfyui", "store", "manifest", "full", "json", "dry_run"))
def smoke(
    c: Context,
    python: str | None = None,
    comfyui: str | None = None,
    store: str | None = None,
    manifest: str | None = None,
    full: bool = False,
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """4. Run the installed kernels on every GPU against a reference; put the machine back if they are wrong (exit 6).

    Example: sagewheels smoke --full
    """
    from sagewheels import proving

    with run.job(
        c, python=python, comfyui=comfyui, store=store, manifest=manifest, dry_run=dry_run, as_json=json
    ) as job:
        proving.do_smoke(job, long=full)


_BENCH = {
    "lengths": "sequence lengths (default: 1024 to 32768, each twice the one before)",
    "head_dims": "head dimensions",
    "causal": "the causal mask: both, yes or no",
    "dtype": "bfloat16 or float16",
    "batch": "batch size",
    "heads": "heads of queries and of keys",
    "quick": "three lengths, fewer calls: a minute at most",
    "from": "draw table and chart from this file of an earlier run; needs no GPU",
    "out": "the folder for the figures (.json) and the chart (.png)",
}


@task(auto_shortflags=False, help={**_BENCH, **_flags("python", "comfyui", "manifest", "json", "dry_run")})
def bench(
    c: Context,
    python: str | None = None,
    comfyui: str | None = None,
    manifest: str | None = None,
    lengths: str = "",
    head_dims: str = "64,128",
    causal: str = "both",
    dtype: str = "bfloat16",
    batch: str = "4",
    heads: str = "32",
    quick: bool = False,
    from_: str = "",
    out: str = "bench",
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """How fast the installed package is here against torch's attention, each result checked (exit 6: one is wrong).

    Medians of CUDA event times with a cold L2 cache, the functions in turns; against a float32 reference.

    Example: sagewheels bench --quick
    A chart of what was measured elsewhere: sagewheels bench --from bench/bench-nvidia-h100.json
    """
    from pathlib import Path

    from sagewheels import bench as benching

    with run.job(
        c, python=python, comfyui=comfyui, manifest=manifest, dry_run=dry_run, as_json=json, locked=False
    ) as job:
        if from_:
            benching.again(job, Path(from_), Path(out))
            return
        wish = benching.plan(
            lengths=lengths, head_dims=head_dims, causal=causal, dtype=dtype, batch=batch, heads=heads, quick=quick
        )
        benching.measure(job, wish, Path(out))


@task(help=_flags("python", "comfyui", "manifest", "dry_run"))
def rollback(
    c: Context,
    python: str | None = None,
    comfyui: str | None = None,
    manifest: str | None = None,
    dry_run: bool = False,
) -> None:
    """Put back what was installed before, also when it came from elsewhere; once more goes back one more step.

    Example: sagewheels rollback --dry-run
    """
    from sagewheels import rollback as way

    with run.job(c, python=python, comfyui=comfyui, manifest=manifest, dry_run=dry_run) as job:
        way.rollback(job)


@task(name="init-hf", help=_flags("store", "sign", "dry_run"))
def init_hf(c: Context, store: str | None = None, sign: bool = False, dry_run: bool = False) -> None:
    """Create and check your Hub repository: token's rights, card, index; --sign: and sign it, also a directory.

    Example: HF_TOKEN=... HF_REPO_ID=me/wheels sagewheels init-hf --sign
    """
    from sagewheels import steps

    with run.job(c, store=store, dry_run=dry_run, locked=False) as job:
        steps.do_init(job, sign=sign)


@task(name="list", help=_flags("arch", "python", "comfyui", "store", "manifest", "offline", "json"))
def list_(
    c: Context,
    arch: str | None = None,
    python: str | None = None,
    comfyui: str | None = None,
    store: str | None = None,
    manifest: str | None = None,
    offline: bool = False,
    json: bool = False,
) -> None:
    """What your store holds, and for each wheel whether it fits this machine or why not.

    Example: sagewheels list --store /mnt/usb/wheels
    """
    from sagewheels import listing

    with run.job(
        c,
        arch=arch,
        python=python,
        comfyui=comfyui,
        store=store,
        manifest=manifest,
        offline=offline,
        as_json=json,
        locked=False,
    ) as job:
        listing.show(job)


_LOG = {"log": "explain this log instead: of a build, of ComfyUI, a traceback; - reads what is piped in"}


@task(help={**_LOG, **_flags("arch", "python", "comfyui", "store", "manifest", "json")})
def doctor(
    c: Context,
    log: str = "",
    arch: str | None = None,
    python: str | None = None,
    comfyui: str | None = None,
    store: str | None = None,
    manifest: str | None = None,
    json: bool = False,
) -> None:
    """One screen of checks, each with its remedy; exit 2 when one of them would stop auto.

    Example: sagewheels doctor
    What a log shows, why, and what to do: sagewheels doctor --log ~/ComfyUI/user/comfyui.log
    """
    from sagewheels import diagnosis
    from sagewheels import doctor as checks

    with run.job(
        c, arch=arch, python=python, comfyui=comfyui, store=store, manifest=manifest, as_json=json, locked=False
    ) as job:
        if log:
            diagnosis.show(job, log)
        else:
            checks.show(job)


_CHECK = {"check": "call ComfyUI's attention on this GPU and see which kernels it runs"}


@task(help={**_CHECK, **_flags("comfyui", "python", "manifest", "json")})
def comfyui(
    c: Context,
    comfyui: str | None = None,
    python: str | None = None,
    manifest: str | None = None,
    check: bool = False,
    json: bool = False,
) -> None:
    """Which Python your ComfyUI runs with, and how to start it; --check: that its attention call is fast (exit 6: no).

    Example: sagewheels comfyui --check --comfyui ~/ComfyUI
    """
    from sagewheels import comfyui as comfy

    with run.job(c, comfyui=comfyui, python=python, manifest=manifest, as_json=json, locked=False) as job:
        comfy.show(job, check=check)


@task
def demo(c: Context) -> None:
    """The whole graph on a small kernel of our own: own environment, directory store, first a build, then a fetch.

    Example: sagewheels demo
    """
    from sagewheels import demo as tour

    with run.job(c, dry_run=None) as job:
        tour.take(job.settings)


@task(help=_flags("all", "dry_run"))
def clean(c: Context, all: bool = False, dry_run: bool = False) -> None:
    """Remove what can be made again: sources, toolkit, build tools; compiled objects and the way back stay.

    --all adds the objects in WORK_DIR, the wheels and the logs, but no folder that OBJECT_CACHE_DIR names.

    Example: sagewheels clean --all --dry-run
    """
    from sagewheels import cleaning

    with run.job(c, dry_run=dry_run) as job:
        cleaning.clean(job.settings, everything=all, dry_run=job.dry_run)


_TEST = {
    "args": "what to hand to pytest, such as '-k match -x'",
    "all": "also what takes minutes: every fault, every kill, all inputs (benchmarks/reliability.md)",
}


@task(help=_TEST)
def test(c: Context, args: str = "", all: bool = False) -> None:
    """Linters and test suite in an environment of their own.

    Example: sagewheels test --args '-k match'
    """
    from sagewheels import quality

    with run.job(c, dry_run=None, locked=False) as job:
        quality.test(job.settings, args, everything=all)


@task
def lint(c: Context) -> None:
    """ruff, mypy --strict and shellcheck, in the environment of the tests.

    Example: sagewheels lint
    """
    from sagewheels import quality

    with run.job(c, dry_run=None, locked=False) as job:
        quality.lint(job.settings)


namespace = Collection(
    auto,
    install,
    stack,
    fetch,
    verify,
    build,
    matrix,
    fleet,
    generate,
    upload,
    smoke,
    bench,
    comfyui,
    rollback,
    init_hf,
    list_,
    doctor,
    demo,
    clean,
    test,
    lint,
)

# Before anything runs, and however Invoke was started.
run.refuse_flags_of_many(sys.argv[1:], {*namespace.task_names, *chain(*namespace.task_names.values())})
