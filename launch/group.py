"""TF_CONFIG, which tells each worker of a group who is who."""

import json
from collections.abc import Sequence


def tf_config(addresses: Sequence[str], rank: int) -> str:
    """Returns the value of TF_CONFIG.

    Args:
        addresses: all workers as host:port, by rank.
        rank: this worker's.
    """
    cluster = {"worker": list(addresses)}
    return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
