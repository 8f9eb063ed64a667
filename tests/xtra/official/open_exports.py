"""Export a run for every library, open each export there, and print how far its tokens are from those of `xtra.load`.

    python tests/xtra/official/open_exports.py RUN

The code that opens an export is that of its model card. A library that does not import here has the reason in its row.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import torch

import xtra
from xtra.official import export
from xtra.official.encoder_files import tokens

KINDS = (  # target, mask, library, which Python block of the card, the name of its tokens
    ("encoder", "causal", "transformers", 0, "tokens"),
    ("encoder", "none", "transformers", 0, "tokens"),
    ("encoder", "causal", "torch", 1, "tokens"),
    ("encoder", "none", "torch", 1, "tokens"),
    ("torch", "causal", "torch", 0, "tokens"),
    ("torch", "none", "torch", 0, "tokens"),
    ("timm", "none", "timm", 0, "tokens"),
)


@torch.no_grad()
def opened(run: str, target: Any, mask: Any, library: str, block: int, name: str) -> str:
    encoder = xtra.load(run)
    c = encoder.config
    images = torch.randn(4, 3, c.image, c.image, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        export.run(export.Config(run, folder, to=target, mask=mask))
        os.chdir(folder)
        sys.path.insert(0, folder)
        try:
            version = importlib.import_module(library).__version__
        except Exception as error:  # torchvision for another torch raises RuntimeError
            return f"{library} does not import here: {error}"
        made: dict[str, Any] = {"images": images}
        exec(re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[block], made)
        sys.path.remove(folder)
        sys.modules.pop("modeling_xtra", None)
        theirs, ours = made[name], tokens(encoder, images, mask)
        return f"{library} {version}: {float((theirs - ours).abs().max()):.1e} of at most {float(ours.abs().max()):.1f}"


def main() -> None:
    run = os.path.abspath(sys.argv[1])
    for target, mask, library, block, name in KINDS:
        print(f"--to {target} --mask {mask}: {opened(run, target, mask, library, block, name)}", flush=True)


if __name__ == "__main__":
    main()
