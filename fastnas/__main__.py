"""The `fastnas` command: `fastnas search …` is `python -m fastnas.search …`, and so on."""

from __future__ import annotations

import runpy
import sys

COMMANDS = {
    "search": "search an architecture for your images",
    "train": "train the network of a genotype",
    "evaluate": "accuracy, size and speed of a trained network",
    "export": "a trained network as ONNX or as a torch.export program",
    "report": "write the report page of a run again",
    "env": "versions, build and devices",
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        width = max(map(len, COMMANDS))
        listed = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
        wanted = sys.argv[1] if len(sys.argv) > 1 else "--help"
        text = f"usage: fastnas COMMAND [options]\n\n{listed}\n\n`fastnas COMMAND --help` lists the options."
        if wanted in ("-h", "--help"):
            print(text)
            return
        sys.exit(f"unknown command {wanted!r}\n\n{text}")
    command = sys.argv.pop(1)
    sys.argv[0] = f"fastnas {command}"
    runpy.run_module(f"fastnas.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
