"""`python -m trainer.preflight`. Nothing here, as nothing there, runs on a TPU."""

import json
import os
import subprocess
import sys

import pytest

from tests.preflight.common import ROOT, canary
from trainer import config as config_lib
from trainer.config import Config
from trainer.devices.checks import check_tpu
from trainer.errors import UserError
from trainer.models.build import build_model
from trainer.models.stages import moving_statistics

NO_SYNC_BN = "model.sync_batch_norm=false"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "trainer.preflight", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--tpu=: must name a slice, such as --tpu=v5e:2x4"),
        (["--tpu=v5litepod-8"], "--tpu=v5e:2x4"),
        (
            ["--tpu=v5e:2x2", "--set", "model.nam=resnet18"],
            "did you mean --set model.name=resnet18?",
        ),
        (["--tpu=v5e:2x2", "--global_batch_size=0"], "global_batch_size"),
        (["--tpu=v5e:2x2", "--global_batch_size=96", "--set=accumulation_steps=5"], "(96)"),
        (["--tpu=v5e:2x2", "--time_limit_s=nan"], "--time_limit_s=nan: must be a number"),
        (
            ["--tpu=v5e:2x2", "--config=configs/photos_resnet18.py"],
            "model.num_classes is none, and there are no data: --set model.num_classes=NUMBER",
        ),
        (["--tpu=v5e:2x2", "--time_limit_s=inf"], "--time_limit_s"),
    ],
)
def test_a_mistake_is_one_line_before_tensorflow_is_imported(arguments, words, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit(99)")
    done = run(*arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [["--config=configs/photos_resnet18.py"], ["--set=seed=x"], ["--tpu=v5e:3"]]
)
def test_a_mistake_is_json_too(arguments):
    done = run("--tpu=v5e:2x2", "--json", *arguments)
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert found == {"status": "error", "error": done.stderr.strip().removeprefix("error: ")}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("precision=mixed_float16", "--set precision=mixed_bfloat16"),
        ("xla=off", "--set xla=auto"),
    ],
)
def test_what_no_tpu_computes_is_refused(setting, words):
    with pytest.raises(UserError, match=words):
        check_tpu(config_lib.override(Config(), [setting]))


@canary
@pytest.mark.slow  # the compiler takes half a minute
def test_canary_the_command_compiles_a_small_net(tmp_path):
    """With the real compiler, as in CI: ResNet-20 on four chips, as JSON, and once more from the
    cache. FLOPs, by He et al. 2015: 40.6 million multiply-adds an image forward at 32 pixels; here
    at 12, of which the backward pass has twice as many."""
    arguments = ["--tpu=v5e:2x2", "--json", "--set", NO_SYNC_BN, "--global_batch_size=512"]
    done = run(*arguments, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    model = build_model(config_lib.load(str(ROOT / "configs" / "digits_resnet20.py")), 1)
    trained = sum(v.shape.num_elements() for v in model.trainable_variables)
    statistics = sum(v.shape.num_elements() for v in moving_statistics(model))
    assert found["fits"] and not found["cached"] and found["num_replicas"] == 4
    # Gradients, statistics, loss and accuracy. Of the two betas that are added where a shortcut is
    # projected, the gradients are equal, and the compiler sums them once.
    assert found["all_reduce_bytes"] == 4 * (trained + statistics + 2 - 32 - 64)
    assert found["all_reduces"] < 10  # packed
    forward = 2 * 40.6e6 * (12 / 32) ** 2 * 128
    assert found["flops"] == pytest.approx(3 * forward, rel=0.2)
    # Images and variables are the least; an activation of each layer and image is held.
    assert 4 * trained < found["peak_bytes"] < found["hbm_bytes"]
    again = json.loads(run(*arguments, XDG_CACHE_HOME=str(tmp_path)).stdout)
    assert again == found | {"cached": True}
