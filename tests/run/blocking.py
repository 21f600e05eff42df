"""For processes that tests start: a call that stays in C, as a loop of steps does."""

import ctypes
import sys
import threading


def stay_in_c() -> None:
    """Prints `blocked` once this thread is in C, and returns after a line on stdin.

    No signal ends the call earlier, unlike that of a read.
    """
    library = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(64)  # zeros: PTHREAD_MUTEX_INITIALIZER
    entered = threading.Lock()
    entered.acquire()

    def free() -> None:
        with entered:
            print("blocked", flush=True)
        sys.stdin.readline()
        library.pthread_mutex_unlock(mutex)

    threading.Thread(target=free, daemon=True).start()
    library.pthread_mutex_lock(mutex)
    # No thread takes Python's lock from another: `free` gets it from the call below.
    sys.setswitchinterval(1000)
    entered.release()
    library.pthread_mutex_lock(mutex)
    sys.setswitchinterval(0.005)
