"""Measures the default recipe's accuracy on the 360 test examples, run as by `make train`.

    python -m benchmarks.digits

Runs seeds 0 to 4, each in its own process. Prints a Markdown row per seed, then mean, minimum and
maximum. The accuracy is the one after the last step: picking the best evaluation would select on
the test set.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    accuracies = []
    print("| seed | accuracy % | train loops, s | images/s |\n|---|---|---|---|")
    for seed in range(5):
        with tempfile.TemporaryDirectory() as workdir:
            command = [sys.executable, "-m", "trainer.main", "--strategy=mirrored"]
            subprocess.run(
                [*command, f"--set=seed={seed}", f"--workdir={workdir}"],
                check=True,
                capture_output=True,
            )
            lines = Path(workdir, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            done = Path(workdir, "DONE").read_text(encoding="utf-8")
        accuracy = 100 * json.loads(lines[-1])["top1_accuracy"]
        accuracies.append(accuracy)
        seconds = done.partition("trained ")[2].partition(" s at")[0]
        rate = done.partition(" s at ")[2].partition(" images/s")[0]
        print(f"| {seed} | {accuracy:.2f} | {seconds} | {rate} |", flush=True)
    print(
        f"\nmean {statistics.mean(accuracies):.2f} %, least {min(accuracies):.2f} %, "
        f"most {max(accuracies):.2f} %"
    )


if __name__ == "__main__":
    main()
