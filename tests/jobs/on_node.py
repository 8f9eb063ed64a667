"""`xtra` of one of several nodes on this machine: it joins the one that XTRA_NODE names, as on a machine of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from ray._private import services

from jobs import cli

find = services.get_node_to_connect_for_driver


def find_mine(*words: Any, **named: Any) -> Any:
    return find(*words, **{**named, "node_name": os.environ["XTRA_NODE"]})


if __name__ == "__main__":
    services.get_node_to_connect_for_driver = find_mine
    sys.exit(cli.main())
