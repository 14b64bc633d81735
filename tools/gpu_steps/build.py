"""The extension, for this GPU alone. A rehearsal builds the emulated kernels, which the later steps run."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from gpu_steps.ground import ROOT, Ground


def run(ground: Ground) -> None:
    if ground.rehearse:
        variables, words = {"FASTNAS_EMULATE": "emulation"}, []
    else:
        import torch

        major, minor = torch.cuda.get_device_capability(ground.device)
        variables, words = {"FASTNAS_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}, ["--inplace"]
    ground.say(variables=variables)
    begin = time.monotonic()
    command = [sys.executable, "setup.py", "--quiet", "build_ext", *words]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables)
    ground.say(build_seconds=round(time.monotonic() - begin, 1))
    if done.returncode:
        raise RuntimeError(f"setup.py ended with {done.returncode}; gpu_check.log has the compiler's words")
    code = "from fastnas._library import _C; print(_C.build_info())"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    ground.say(extension=(loaded.stdout or loaded.stderr).strip().splitlines()[-1])
    if loaded.returncode:
        raise RuntimeError("the extension does not load: " + ground.found["extension"])
