"""Who is who in a group of workers: TF_CONFIG, here and as bash makes it on another machine."""

import json
from collections.abc import Sequence


def tf_config(addresses: Sequence[str], rank: int) -> str:
    """What TensorFlow reads: all workers as host:port, by rank, and this one's rank."""
    cluster = {"worker": list(addresses)}
    return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
