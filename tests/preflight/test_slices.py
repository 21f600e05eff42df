"""The names of TPU slices."""

import pytest

from benchmarks.preflight import slice_of
from tests.conftest import with_data, with_model
from tests.preflight.common import ROOT, canary
from trainer import config as config_lib
from trainer.errors import UserError
from trainer.preflight import compiler, program
from trainer.preflight.compiler import CompiledProgram, Deadline, Refused
from trainer.preflight.slices import parse_slice


@pytest.mark.parametrize(
    ("name", "replicas"),
    [("v5e:2x4", 8), ("v5e:1x1", 1), ("v6e:16x16", 256), ("v3:2x2", 8), ("v4:2x2x2", 16)],
)
def test_a_slice_has_a_replica_for_each_core(name, replicas):
    assert parse_slice(name).num_replicas == replicas


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5litepod-8", "--tpu=v5e:2x4"),
        ("v6e-32", "--tpu=v6e:4x8"),
        ("v5:2x2", "did you mean v5"),
        ("tpu", "one of v2, v3"),
        ("tpu7x:2x2x1", "TensorFlow does not run on TPU7x"),
        ("v5e", "layout of the chips on 2 axes, such as v5e:2x2"),
        ("v5e:2x2x1", "on 2 axes"),
        ("v4:2x2", "on 3 axes, such as v4:2x2x1"),
        ("v5e:0x2", "layout"),
        ("v5e:2x-2", "layout"),
        ("v5e:2x4\n", "layout"),
        ("v5e:32x32", "has 1,024 chips, and v5e at most 256"),
        ("v4-8", "counts cores"),
    ],
)
def test_a_wrong_slice_is_named_with_what_to_write(name, words):
    with pytest.raises(UserError) as error:
        parse_slice(name)
    assert f"--tpu={name}:" in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_a_recipe_names_a_slice_that_its_batch_can_be_split_over(path):
    config = config_lib.load(str(path))
    assert config.data.global_batch_size % parse_slice(slice_of(path)).num_replicas == 0


@canary
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["v2:2x2", "v3:2x2", "v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "v5e:4x8"]
)
def test_canary_the_compiler_knows_the_slices_and_their_cores(name, small_config):
    """A program for one replica more than there are is refused: it counts as we do."""
    config = with_data(with_model(small_config, "linear"), global_batch_size=1024)
    target = parse_slice(name)
    hlo = program.train_step_program(config, target.num_replicas)
    found = compiler.compile_program(hlo, name, Deadline(600))
    assert isinstance(found, CompiledProgram)
    hlo = program.train_step_program(config, 2 * target.num_replicas)
    refused = compiler.compile_program(hlo, name, Deadline(600))
    assert isinstance(refused, Refused)
    assert f"should contain {target.num_replicas} replicas" in refused.reason
