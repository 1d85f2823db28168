"""Checks that the driver supports the CUDA version of the installed torch. No torch: its version.py is read as text."""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hydraft.system.driver.card import FIRST_DRIVER, Gpu

OVERRIDE = "HYDRAFT_DRIVER_CHECK"
"""Set to 0, the check is skipped: for CUDA's forward compatibility package, and for custom builds of torch."""

OLDEST_CAPABILITY = 7.5
"""Turing. Below it, torch's and bitsandbytes' builds for CUDA 13 have no kernels."""

BUILDS = ((13, "cu130"), (12, "cu126"))
"""CUDA releases, newest first, and torch's wheels for them."""

NEWEST = FIRST_DRIVER[BUILDS[0][0]]

NEW_CARDS, NEW_CARDS_CUDA = 10.0, (12, 8)
"""Compute capability of Blackwell, and the first CUDA version that supports it."""


def installed() -> tuple[str, str | None]:
    """Version of the installed torch without a suffix such as ``+cu126``, and its CUDA version: empty if none, None if not known."""
    if os.environ.get(OVERRIDE) == "0":
        return "", None
    spec = find_spec("torch")  # does not import torch
    try:
        text = (Path(spec.origin).parent / "version.py").read_text() if spec and spec.origin else ""
    except OSError:
        text = ""
    version = re.search(r"^__version__ = '([^'+]*)", text, re.MULTILINE)
    cuda = re.search(r"^cuda(?:: [^=]*)? = (?:'([\d.]+)'|None)", text, re.MULTILINE)
    return version[1] if version else "", None if cuda is None else cuda[1] or ""


def incompatibility(gpus: Sequence[Gpu], driver: str, driver_cuda: str, torch: str, torch_cuda: str | None) -> str:
    """Why torch cannot use ``gpus``, and what to do about it; empty if it can, or if not enough is known.

    Args:
        gpus: the GPUs that a run would use.
        driver: version of the NVIDIA driver.
        driver_cuda: the newest CUDA version that the driver supports.
        torch: version of the installed torch.
        torch_cuda: the CUDA version that torch was built for; empty if built without CUDA, None if not known.
    """
    for gpu in gpus:
        if 0 < gpu.compute_capability < OLDEST_CAPABILITY:
            found = f"{gpu.name} has compute capability {gpu.compute_capability}"
            return (
                f"{found}, and it must be {OLDEST_CAPABILITY} (Turing) or more: use another GPU (CUDA_VISIBLE_DEVICES=)"
            )
    if not gpus or torch_cuda is None:
        return ""
    newest = max(gpus, key=lambda gpu: gpu.compute_capability)
    instead = _instead(newest, driver_cuda, torch)
    version = f"an NVIDIA driver {driver}" if driver else "an NVIDIA driver"
    installed = f"{version} (CUDA {driver_cuda})" if driver_cuda else version
    if torch_cuda == "":
        return f"{newest.name} has {installed}, but the torch {torch} here is built without CUDA: {instead}"
    built = tuple(int(part) for part in torch_cuda.split("."))
    if driver_cuda and int(driver_cuda.split(".")[0]) < built[0]:
        needs = f"a driver from {FIRST_DRIVER[built[0]]} on" if built[0] in FIRST_DRIVER else "a newer driver"
        return f"the torch {torch} here is built for CUDA {torch_cuda}, which needs {needs}, and {newest.name} has {installed}: {instead}"
    if newest.compute_capability >= NEW_CARDS and built < NEW_CARDS_CUDA:
        card = f"{newest.name} has compute capability {newest.compute_capability}"
        return (
            f"{card}, and the torch {torch} here is built for CUDA {torch_cuda}, which has no kernels for it: {instead}"
        )
    return ""


def _instead(gpu: Gpu, driver_cuda: str, torch: str) -> str:
    """What to install. The version names the build, since pip accepts any installed build for a plain version."""
    supported = int(driver_cuda.split(".")[0]) if driver_cuda else BUILDS[0][0]
    if gpu.compute_capability >= NEW_CARDS:
        supported = supported if supported >= BUILDS[0][0] else 0  # the older build has no kernels for it
    build = next((build for cuda, build in BUILDS if supported >= cuda), None)
    newer = f"install a driver from {NEWEST} on"
    if build is None:
        return f"{newer}, and pip install torch=={torch}+{BUILDS[0][1]} --index-url https://download.pytorch.org/whl/{BUILDS[0][1]}"
    pip = f"pip install torch=={torch}+{build} --index-url https://download.pytorch.org/whl/{build}"
    return pip if build == BUILDS[0][1] else f"{pip} fits this driver, or {newer}"
