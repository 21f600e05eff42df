"""A process of benchmarks/startup.py: times the parts from the command to the first step's end.

Prints `{"interpreter": s, "import of TensorFlow": s, …}`, in order.
"""

import time

BEGAN = time.time()  # the wall clock, which the parent process read too

import json  # noqa: E402
import sys  # noqa: E402


def main() -> None:
    model, batch, image_size, started = sys.argv[1:]
    laps = {"interpreter": BEGAN - float(started)}
    last = BEGAN

    def lap(name: str) -> None:
        nonlocal last
        laps[name] = time.time() - last
        last = time.time()

    import tensorflow as tf

    lap("import of TensorFlow")
    import trainer.run.train  # noqa: F401  # everything a run imports

    lap("our own imports")
    from benchmarks.peers import ours, protocol

    lap("this benchmark's imports")
    request = protocol.Request(model, int(batch), int(image_size), "float32", 0, "")
    loop = ours.Loop(request, tf.distribute.OneDeviceStrategy("/CPU:0"))
    lap("build")
    loop.train_loop.get_concrete_function(loop.iterator, tf.constant(1))
    lap("trace")
    loop.run(1)
    lap("compile and first step")
    loop.run(1)
    lap("second step")
    print(json.dumps(laps))


if __name__ == "__main__":
    main()
