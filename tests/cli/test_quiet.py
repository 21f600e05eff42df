"""trainer.cli.quiet: TensorFlow's output at its start is held back, and not lost. Later, lines of
image decoders are left out.

Most tests use a stand-in for TensorFlow, which writes to file descriptor 2 as its C++ does.
"""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import textwrap
from pathlib import Path

import pytest

from tests.photo_files import bad_jpegs, odd_jpegs, write_photos

ROOT = Path(__file__).parents[2]
IMPORT, DEVICES = "E0000 noise of the import\n", "E0000 noise of the devices\n"
TENSORFLOW = f"""
import contextlib, os, signal, sys
def write(text):
    with contextlib.suppress(OSError):  # C++ does not mind
        os.write(2, text.encode())
write({IMPORT!r})
REASON
class config:
    def list_physical_devices():
        write({DEVICES!r})
"""
# A verb's program, with its own lines before, inside and after.
VERB = """
import os, signal, sys
from absl import flags
from trainer.cli import quiet
from trainer.errors import UserError
flags.FLAGS(["verb", *sys.argv[1:]])
{before}
with quiet.quiet_start():
    print("ours, inside", file=sys.stderr)
    import tensorflow
    {inside}
print("ours, after", file=sys.stderr)
{after}
"""


def verb(before: str = "", inside: str = "pass", after: str = "") -> str:
    return VERB.format(before=before, inside=inside, after=after)


@pytest.fixture
def start(tmp_path):
    """Returns a function that starts a process with the stand-in and its stderr in a pipe.

    The function's `reason` runs in the stand-in's import, after its noise.
    """
    running = []

    def start_(*command: str, reason: str = "", **options) -> subprocess.Popen:
        (tmp_path / "tensorflow.py").write_text(TENSORFLOW.replace("REASON", reason))
        unset = ("TF_CPP_MIN_LOG_LEVEL", "TF_CONFIG", "TPU_NAME")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
            text=True,
            **({"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE} | options),
        )
        running.append(process)
        return process

    yield start_
    for process in running:
        with process:  # closes its pipes
            process.kill()


@pytest.fixture
def outcome(start):
    """Returns a function that runs such a process and returns its exit code and stderr."""

    def outcome_(text: str, *flags: str, reason: str = "") -> tuple[int, str]:
        process = start("-c", text, *flags, reason=reason)
        stderr = process.communicate()[1]
        return process.returncode, stderr

    return outcome_


def test_only_our_lines_come_out(outcome):
    after = "os.write(2, b'descriptor 2 is back\\n')"
    expected = "ours, inside\nours, after\ndescriptor 2 is back\n"
    assert outcome(verb(after=after)) == (0, expected)


def test_our_lines_come_out_at_once(start):
    process = start("-c", verb(inside="sys.stdin.read()"), stdin=subprocess.PIPE)
    assert process.stderr.readline() == "ours, inside\n"  # while it waits for its input
    assert process.communicate()[1] == "ours, after\n"


@pytest.mark.parametrize("error", ["UserError", "ValueError"])
def test_a_failed_start_leaves_no_child_behind(outcome, error):
    text = verb(inside=f"raise {error}")
    text = f"try:\n{textwrap.indent(text, '    ')}\nexcept {error}: os.waitpid(-1, 0)"
    code, stderr = outcome(text)
    assert code == 1
    assert "ChildProcessError" in stderr


@pytest.mark.parametrize(("flag", "loud"), [("0", True), ("1", True), ("-1", False)])
def test_verbosity_shows_everything(outcome, flag, loud):
    text = verb(after="print(os.environ.get('TF_CPP_MIN_LOG_LEVEL'), file=sys.stderr)")
    noise, level = (IMPORT, None) if loud else ("", 2)
    expected = f"ours, inside\n{noise}ours, after\n{level}\n"
    assert outcome(text, f"--verbosity={flag}") == (0, expected)


@pytest.mark.parametrize(
    ("reason", "code", "last"),
    [
        ("write('no memory'); os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, "no memory"),
        ("write('cannot go on'); os._exit(7)", 7, "cannot go on"),
        ("raise ImportError('no libcudart')", 1, "ImportError: no libcudart\n"),
        ("sys.exit('not this CPU')", 1, "not this CPU\n"),
    ],
    ids=["SIGKILL", "exit", "exception", "SystemExit"],
)
def test_a_failed_import_shows_the_held_output(outcome, reason, code, last):
    found, stderr = outcome(verb(), reason=reason)
    assert found == code
    assert stderr.startswith(f"ours, inside\n{IMPORT}")
    assert stderr.endswith(last)
    assert stderr.count(IMPORT) == 1


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV], ids=lambda n: n.name)
def test_a_fatal_signal_shows_the_held_output_before_the_end(start, tmp_path, number):
    reason = f"write('Check failed: x\\n'); os.kill(os.getpid(), {number:d})"
    with (tmp_path / "stderr").open("w+") as file:
        process = start("-c", verb(), reason=reason, stderr=file)
        assert process.wait() == -number
        # The end of a container's first process ends all others, so nothing may come after it.
        stderr = Path(file.name).read_text()
    assert stderr.startswith(f"ours, inside\n{IMPORT}Check failed: x\nFatal Python error: ")
    assert 'tensorflow.py", line' in stderr  # where it happened


def test_a_failed_listing_of_devices_shows_the_held_output(outcome):
    listing = "lambda: (tensorflow.write('cuInit\\n'), os.abort())"
    code, stderr = outcome(verb(inside=f"tensorflow.config.list_physical_devices = {listing}"))
    assert code == -signal.SIGABRT
    assert stderr.startswith(f"ours, inside\n{IMPORT}cuInit\nFatal Python error: Aborted\n")


@pytest.mark.parametrize("enabled", [True, False])
def test_reports_of_fatal_signals_are_as_before(outcome, enabled):
    before = "import faulthandler" + ("; faulthandler.enable()" if enabled else "")
    code, stderr = outcome(verb(before=before, after="os.abort()"))
    assert code == -signal.SIGABRT
    assert stderr.startswith("ours, inside\nours, after\n")
    assert ("Fatal Python error" in stderr) is enabled


def test_a_start_that_hangs_shows_the_held_output(start):
    text = verb(before="quiet._PATIENCE_S = 0.01", inside="sys.stdin.read()")
    process = start("-c", text, stdin=subprocess.PIPE)
    assert {process.stderr.readline(), process.stderr.readline()} == {"ours, inside\n", IMPORT}
    process.communicate()
    assert process.returncode == 0


# After the start: lines that are left out, and a line that is not.
KNOWN = """Corrupt JPEG data: 95 extraneous bytes before marker 0xd9
E0000 00:00:1795832025.592251 17740 jpeg_mem.cc:331] Premature end of JPEG data. Stopped at line 3/9
Warning: unknown JFIF revision number 0.00
"""
OTHER = "E0000 00:00:1795832025.592251   17740 cuda_dnn.cc:52] no handle\n"


def waits_for(count: int) -> str:
    """The watcher may be late: code that waits until it has counted the warnings."""
    tally = "__import__('trainer.data.decoder_log').data.decoder_log.tally"
    return f"while {tally}.count < {count}: pass"


def test_known_lines_are_left_out_and_counted(outcome):
    after = f"os.write(2, {(KNOWN + OTHER + KNOWN).encode()!r})\n{waits_for(4)}\n"
    after += (
        "print(quiet.decoder_log.tally.count, quiet.decoder_log.tally.example, file=sys.stderr)"
    )
    code, stderr = outcome(verb(after=after))
    example = KNOWN.splitlines()[0]
    # Our lines and those that are passed on take different ways.
    assert (code, sorted(stderr.splitlines(keepends=True))) == (
        0,
        sorted(["ours, inside\n", "ours, after\n", OTHER, f"4 {example}\n"]),
    )


def test_verbosity_leaves_nothing_out(outcome):
    code, stderr = outcome(verb(after=f"os.write(2, {KNOWN.encode()!r})"), "--verbosity=0")
    assert code == 0
    assert stderr.endswith(f"ours, after\n{KNOWN}")


GONE = """\
E0000 00:00:1.0 25188 base_collective_executor.cc:252] BaseCollectiveExecutor::StartAbort \
UNAVAILABLE: Error reported from /job:worker/task:1: The following tasks are unhealthy (stopped \
sending heartbeats):
/job:worker/replica:0/task:1
The tasks have crashed. Check the task logs for an earlier error, or scheduler events.
"""
LEADER_GONE = """\
E0000 00:00:1.0 25188 base_collective_executor.cc:252] BaseCollectiveExecutor::StartAbort \
UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted.
Additional GRPC error information from remote target /job:worker while calling Heartbeat:
:UNKNOWN:Error received from peer  {grpc_message:"failed to connect", grpc_status:14}
"""


@pytest.mark.parametrize("text", [GONE, LEADER_GONE])
def test_workers_that_end_first_are_not_mentioned(outcome, text):
    """As seen if one worker of two was 40 s later at its end."""
    code, stderr = outcome(verb(after=f"os.write(2, {(text + OTHER).encode()!r})"))
    assert (code, stderr) == (0, f"ours, inside\nours, after\n{OTHER}")


def test_a_line_without_an_end_comes_out_at_once(start):
    text = verb(after="os.write(2, b'Corrupt? '); sys.stdin.read()")
    process = start("-c", text, stdin=subprocess.PIPE)
    expected = "ours, inside\nours, after\nCorrupt? "
    assert process.stderr.read(len(expected)) == expected  # while it waits
    process.communicate()
    assert process.returncode == 0


def test_a_flood_is_counted(outcome):
    lines = 100_000
    after = f"text = ({KNOWN.splitlines(keepends=True)[0]!r} * {lines // 100}).encode()\n"
    after += (
        "for _ in range(100):\n    rest = text\n    while rest: rest = rest[os.write(2, rest):]\n"
    )
    assert outcome(verb(after=after + waits_for(lines))) == (0, "ours, inside\nours, after\n")


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV], ids=lambda n: n.name)
def test_a_fatal_signal_later_shows_all_before_the_end(start, tmp_path, number):
    before = "import faulthandler; faulthandler.enable()"
    text = f"{KNOWN}Check failed: x\n"
    after = f"os.write(2, {text.encode()!r}); os.kill(os.getpid(), {number:d})"
    with (tmp_path / "stderr").open("w+") as file:
        process = start("-c", verb(before=before, after=after), stderr=file)
        assert process.wait() == -number
        stderr = Path(file.name).read_text()
    assert stderr.startswith("ours, inside\nours, after\nCheck failed: x\nFatal Python error: ")


def test_what_decoding_wrote_is_shown_if_the_process_dies(outcome):
    after = f"""
with quiet.decoder_log.WarningFinder(1):
    os.write(2, {(KNOWN + OTHER).encode()!r})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    expected = f"ours, inside\nours, after\n{OTHER}"
    assert outcome(verb(after=after)) == (-signal.SIGKILL, expected)


def test_without_its_watcher_the_process_continues(outcome):
    before = "pids = []; fork = os.fork\nos.fork = lambda: pids.append(fork()) or pids[-1]"
    after = "os.kill(pids[0], signal.SIGKILL); os.waitpid(pids[0], 0)\n"
    after += "tensorflow.write('lost\\n' * 100_000); print('ours, last', file=sys.stderr)"
    expected = "ours, inside\nours, after\nours, last\n"
    assert outcome(verb(before=before, after=after)) == (0, expected)


def test_a_signal_to_all_processes_is_this_ones_to_handle(start):
    after = f"""
signal.signal(signal.SIGTERM, lambda *_: os.write(2, {(KNOWN + OTHER).encode()!r}) and sys.exit(42))
os.write(1, b'ready\\n'); signal.pause()
"""
    pipes = {"stdout": subprocess.PIPE}
    process = start("-c", verb(after=after), start_new_session=True, **pipes)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGTERM)  # as Slurm does
    assert process.communicate()[1] == f"ours, inside\nours, after\n{OTHER}"
    assert process.returncode == 42


def test_a_process_of_this_one_may_outlive_it(outcome):
    child = f"import os, sys; sys.stdin.read(); os.write(2, {(KNOWN + OTHER).encode()!r})"
    after = "import subprocess\n"
    after += (
        f"subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE)\nos._exit(0)"
    )
    assert outcome(verb(after=after)) == (0, f"ours, inside\nours, after\n{OTHER}")


def test_the_watcher_keeps_no_lock(outcome, tmp_path):
    lock = (
        f"fcntl.flock(file := open({str(tmp_path / 'lock')!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    text = verb(
        before=f"import fcntl; {lock}",
        after=f"os.write(2, {KNOWN.encode()!r})\n{waits_for(1)}\nfile.close(); {lock}",
    )
    assert outcome(text) == (0, "ours, inside\nours, after\n")


def test_a_reader_that_leaves_does_not_stop_the_rest(start):
    after = f"sys.stdin.read(); os.write(2, {OTHER.encode()!r} * 9000 + {KNOWN.encode()!r})\n"
    process = start("-c", verb(after=after + waits_for(2)), stdin=subprocess.PIPE)
    assert [process.stderr.readline() for _ in range(2)] == ["ours, inside\n", "ours, after\n"]
    process.stderr.close()
    process.stdin.close()
    assert process.wait() == 0


def test_a_users_mistake_shows_only_its_message(outcome):
    code, stderr = outcome(verb(inside="raise UserError('a mistake')"))
    assert code == 1
    assert "E0000" not in stderr
    assert stderr.endswith("UserError: a mistake\n")


def test_ctrl_c_reaches_only_this_process(start):
    text = verb(inside="os.write(1, b'ready\\n'); sys.stdin.read()")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = start("-c", text, start_new_session=True, **pipes)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    stderr = process.communicate()[1]
    assert process.returncode == -signal.SIGINT
    assert "E0000" not in stderr
    assert stderr.count("KeyboardInterrupt") == 1


def test_without_a_watcher_nothing_is_held(outcome):
    before = "def fork(): raise BlockingIOError\nos.fork = fork"  # no more processes
    expected = f"ours, inside\n{IMPORT}{DEVICES}ours, after\n"
    assert outcome(verb(before=before)) == (0, expected)


def test_children_that_the_system_reaps(outcome):
    before = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    assert outcome(verb(before=before)) == (0, "ours, inside\nours, after\n")


@pytest.mark.parametrize(("reason", "code"), [("", 0), ("os.abort()", -signal.SIGABRT)])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "nobody reads it"])
def test_a_stderr_that_is_gone(start, reason, code, closed):
    text = verb(before="print = lambda *_, **__: None", inside="sys.stdin.read()")
    if closed:
        text = f"import os, sys; os.close(2); os.execl(*[sys.executable] * 2, '-c', {text!r})"
    process = start("-c", text, reason=reason, stdin=subprocess.PIPE)
    process.stderr.close()
    process.stdin.close()
    assert process.wait() == code


@pytest.mark.parametrize(
    "command",
    [
        "main --workdir={tmp}/run",
        "inspect --model=resnet18",
        "export --run={tmp} --out={tmp}/x.safetensors",
        "prepare --source={tmp} --to=nothing",
        "preflight --tpu=v5e:2x4",
    ],
)
def test_every_verb_starts_quietly(start, tmp_path, command):
    """If it is interrupted in the import, earlier output is not shown."""
    for image in ("train/cat/1.jpg", "val/cat/1.jpg"):  # prepare lists them before the import
        (tmp_path / image).parent.mkdir(parents=True)
        (tmp_path / image).touch()
    name, *flags = command.format(tmp=tmp_path).split()
    text = f"""
import runpy
from trainer.preflight import compiler
compiler.check_environment = lambda: None  # which need not be installed
runpy.run_module("trainer.{name}", run_name="__main__", alter_sys=True)
"""
    process = start("-c", text, *flags, reason="raise KeyboardInterrupt")
    assert process.communicate()[1] == "stopped\n"
    assert process.returncode == 130


def test_tensorflow_itself_starts_quietly(tmp_path):
    """A mistake that is found once the devices are listed is one line, ours."""
    command = [sys.executable, "-m", "trainer.main", f"--workdir={tmp_path}"]
    environment = dict(os.environ)
    environment.pop("TF_CPP_MIN_LOG_LEVEL")
    done = subprocess.run(
        [*command, "--strategy=mirrored", "--virtual_devices=2", "--set=data.global_batch_size=63"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: data.global_batch_size (63) must be divisible")
    assert done.stderr.count("\n") == 1


OURS = re.compile(r"\[\d\d:\d\d<|\d/\d+ [a-z ,]+, \d+ s")  # the bar, or what is done instead


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_odd_and_bad_photos_train_without_a_line_of_tensorflow(photos, tmp_path, terminal):
    """With all that the recipe does to images, on a smaller net and smaller images."""
    data = write_photos(tmp_path / "photos", photos, train=16, val=4)
    jpeg = data / "train" / "china" / "000.jpg"
    encoded = jpeg.read_bytes()
    for name, (odd, _) in odd_jpegs(encoded).items():
        (jpeg.parent / f"{name}.jpg").write_bytes(odd)
    jpeg.write_bytes(bad_jpegs(encoded)["cut"])
    settings = ("model.name=resnet20", "data.image_size=32", "num_epochs=3")
    settings += ("data.on_bad_example=skip",)
    flags = [f"--data_dir={data}", f"--workdir={tmp_path / 'run'}"]
    flags += [f"--set={setting}" for setting in settings]
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(theirs, (24, 100))
    with (tmp_path / "stdout").open("w+") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer.main", "--config=configs/photos_resnet18.py", *flags],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=theirs,
        )
        os.close(theirs)
        stderr = b""
        with contextlib.suppress(OSError):  # a terminal's end
            while part := os.read(ours, 2**16):
                stderr += part
        os.close(ours)
        assert process.wait() == 0, stderr
        stdout = Path(file.name).read_text()
    text = re.sub(r"\x1b\[K", "", stderr.decode())  # which clears the rest of a line
    pieces = [piece for piece in re.split(r"[\r\n]+", text) if piece.strip()]
    assert [piece for piece in pieces if not OURS.search(piece)] == []
    assert bool(pieces) is terminal  # the bar
    lines = stdout.splitlines()
    assert len([line for line in lines if line.startswith("the image decoders have warned ")]) == 1
    assert len([line for line in lines if line.startswith("bad example skipped ")]) == 1
    assert "best accuracy" in stdout
    assert "E0000" not in stdout
