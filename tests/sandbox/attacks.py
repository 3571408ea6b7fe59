"""Code that hangs, devours, breaks or attacks, and how its cell may end: a table to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from deepeyes_plugins.sandbox.contracts import Outcome


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        code: The cell.
        ends: How it may end.
        timeout: Seconds that the cell is given.
        says: What stderr must contain.
        survives: Whether the session must go on; None if either will do.
    """

    code: str
    ends: tuple[Outcome, ...]
    timeout: float = 10.0
    says: str = ""
    survives: bool | None = None


def error(code: str, says: str = "", timeout: float = 10.0) -> Attack:
    """Code that raises, in a session that goes on."""
    return Attack(code, ("error",), timeout, says, survives=True)


def harmless(code: str, timeout: float = 10.0) -> Attack:
    """Code that ends well, in a session that goes on."""
    return Attack(code, ("ok",), timeout, survives=True)


def fatal(code: str, says: str = "variables are gone", timeout: float = 10.0) -> Attack:
    """Code that costs its own session, and that alone."""
    return Attack(code, ("killed",), timeout, says, survives=False)


def endless(code: str, timeout: float = 0.5) -> Attack:
    """Code that the time limit ends, in a session that goes on."""
    return Attack(code, ("timeout",), timeout, "did not finish", survives=True)


_SOCKET = (
    "import os, struct\n"
    "def inherited():\n"
    "    for n in range(3, 256):\n"
    "        try:\n"
    "            if os.readlink(f'/proc/self/fd/{n}').startswith('socket'): return n\n"
    "        except OSError: pass\n"
    "conn = inherited()\n"
    "def write(data):\n"
    "    view = memoryview(data)\n"
    "    while view: view = view[os.write(conn, view):]\n"
)
_LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_REPLY = (
    "import msgpack\n"
    "def reply(**fields):\n"
    "    fields = dict(outcome='ok', stdout='', stderr='', result='', images=[],\n"
    "                  error_name=None, names=[]) | fields\n"
    "    bulk = b''.join(fields['images'])\n"
    "    fields['images'] = [len(image) for image in fields['images']]\n"
    "    body = msgpack.packb(fields, unicode_errors='surrogatepass')\n"
    "    return struct.pack('!II', len(body), len(bulk)) + body + bulk\n"
)

# Else the cell's own reply follows, which is one too many in any case.
_AND_WAIT = "\nimport time; time.sleep(5)"

ATTACKS: Final[dict[str, Attack]] = {
    # Time.
    "an endless loop": endless("while True: pass"),
    "a loop in native code": endless("import time\nwhile True: time.sleep(0.01)"),
    "an endless repr": endless("class A:\n def __repr__(self):\n  while True: pass\nA()"),
    "a trace function that never returns": endless(
        "import sys\ndef trace(*_):\n    while True: pass\nsys.settrace(trace)\n(lambda: 0)()"
    ),
    "a swallowed interrupt": fatal(
        "import time\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass",
        "did not react",
        0.3,
    ),
    "a blocked interrupt": fatal(
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "while True: pass",
        "did not react",
        0.3,
    ),
    "an alarm without a handler": fatal(
        "import signal, time; signal.alarm(1); time.sleep(30)", timeout=20
    ),
    "a timer without a handler": fatal(
        "import signal, time; signal.setitimer(signal.ITIMER_REAL, 0.05); time.sleep(30)"
    ),
    # Memory.
    "one big allocation": error("bytearray(1 << 40)", "MemoryError"),
    "one big array": error("import numpy; numpy.ones(1 << 40)", "_ArrayMemoryError"),
    "one big mapping": error("import mmap; mmap.mmap(-1, 1 << 40)"),
    "many small allocations": Attack(
        "hoard = []\nwhile True: hoard.append(bytearray(1 << 16))", ("error", "killed"), 30
    ),
    "many arrays": Attack(
        "import numpy\nhoard = []\nwhile True: hoard.append(numpy.ones(1 << 20))",
        ("error", "killed"),
        30,
    ),
    "memory in threads": Attack(
        "import threading\nhoard = []\n"
        "def grow():\n"
        "    try:\n        while True: hoard.append(bytearray(1 << 20))\n"
        "    except MemoryError: pass\n"
        "threads = [threading.Thread(target=grow) for _ in range(4)]\n"
        "for t in threads: t.start()\n"
        "for t in threads: t.join()",
        ("ok", "error", "killed"),
        30,
    ),
    "files instead of memory": error(
        "block = bytes(1 << 20)\n"
        "for n in range(10_000):\n    with open(f'f{n}', 'wb') as f: f.write(block)",
        "No space left",
    ),
    "mapped files instead of memory": Attack(
        "import mmap\nmaps = []\n"
        "for n in range(10_000):\n"
        "    f = open(f'm{n}', 'w+b'); f.truncate(1 << 24)\n"
        "    m = mmap.mmap(f.fileno(), 1 << 24); maps.append(m); f.close()\n"
        "    for page in range(0, 1 << 24, 4096): m[page] = 1",
        ("error", "killed"),  # The file system is full: a bus error. Or no more address space.
        30,
    ),
    "many files": error("for n in range(100_000): open(f'f{n}', 'w').close()", "No space left"),
    "deep folders": Attack(
        "import os\nfor n in range(100_000): os.mkdir('d'); os.chdir('d')", ("error",), 30
    ),
    "locked memory": harmless(
        _LIBC + "buffer = bytes(1 << 20)\nassert libc.mlock(buffer, len(buffer)) != 0"
    ),
    "two hundred megabytes of print": harmless(
        "for _ in range(200): print('x' * (1 << 20))", timeout=60
    ),
    # Threads.
    "too many threads": fatal(
        "import threading, time\nthreading.stack_size(1 << 15)\n"
        "while True: threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(1e-4)",
        "more than 512 threads",
        timeout=30,
    ),
    "busy threads after the cell": harmless(
        "import hashlib, threading, time\nblock = bytes(1 << 24)\n"
        "def work():\n    time.sleep(0.2)\n    while True: hashlib.sha256(block)\n"
        "for _ in range(50): threading.Thread(target=work, daemon=True).start()"
    ),
    "threads that print after the cell": harmless(
        "import threading\n"
        "def chatter():\n    while True: print('late ' * 100)\n"
        "for _ in range(4): threading.Thread(target=chatter, daemon=True).start()"
    ),
    "a thread that exits": harmless(
        "import sys, threading\nt = threading.Thread(target=sys.exit); t.start(); t.join()"
    ),
    # The end of its process.
    "_exit": fatal("import os; os._exit(3)"),
    "abort": fatal("import os; os.abort()"),
    "a segfault": fatal("import ctypes; ctypes.string_at(0)"),
    "a stack overflow": fatal(
        "import sys\nsys.setrecursionlimit(1 << 30)\n"
        "class A:\n    def __getattr__(self, name): return getattr(self, name + 'x')\n"
        "import ctypes, functools\n"
        "kind = ctypes.CFUNCTYPE(ctypes.c_int)\n"
        "call = kind(lambda: call())\ncall()"
    ),
    "a nested structure": error(
        "import json\na = []\nfor _ in range(200_000): a = [a]\njson.dumps(a)", "RecursionError"
    ),
    "a fatal signal to itself": fatal("import os; os.kill(os.getpid(), 9)"),
    # Processes and other people's.
    "fork": error("import os\nwhile True: os.fork()", "PermissionError"),
    "a shell": error("import os; os.posix_spawn('/bin/sh', ['sh'], {})", "PermissionError"),
    "system": harmless("import os; assert os.system('true') != 0"),
    "signals to everybody": harmless(
        _LIBC + "import threading\n"
        "others = [p for p in range(2, 5000) if p != os.getpid()]\n"
        "for pid in [*others, 0, -1, -os.getppid()]:\n"
        "    assert libc.kill(pid, 9) == -1\n"
        "    assert libc.syscall(234, pid, pid, 9) == -1  # tgkill\n"
        "    assert libc.syscall(200, pid, 9) == -1  # tkill\n"
        "    assert libc.syscall(129, pid, 9, bytes(128)) == -1  # rt_sigqueueinfo\n"
    ),
    "signals through a descriptor": harmless(
        _LIBC + "fd = libc.syscall(434, os.getppid(), 0)\n"
        "assert libc.syscall(424, fd, 9, None, 0) == -1"
    ),
    # The connection to the server.
    "garbage": fatal(_SOCKET + "write(b'\\xff' * 64)", ""),
    "a huge frame": fatal(
        _SOCKET + "write(struct.pack('!II', 64, 0xFFFFFFFF))\nwhile True: write(bytes(1 << 20))",
        "",
    ),
    "a large message of small things": fatal(
        _SOCKET + "body = b'\\xdd\\x00\\x30\\x00\\x00' + b'\\x90' * (3 << 20)\n"
        "write(struct.pack('!II', len(body), 0) + body)",
        "",
    ),
    "a nested message": fatal(
        _SOCKET + "body = b'\\x91' * (1 << 20)\nwrite(struct.pack('!II', len(body), 0) + body)", ""
    ),
    "a message that claims too much": fatal(_SOCKET + _REPLY + "write(reply(outcome='lost'))", ""),
    "a message with other fields": fatal(_SOCKET + _REPLY + "write(reply(duration=-1))", ""),
    "a forged reply": Attack(
        _SOCKET + _REPLY + "write(reply(stdout='\\ud800', result='\\0'))",
        ("ok", "killed"),
        survives=None,
    ),
    "a message with too much text": fatal(
        _SOCKET + _REPLY + "write(reply(stdout='x' * 3_000_000))" + _AND_WAIT, ""
    ),
    "a message with too many images": fatal(
        _SOCKET + _REPLY + "write(reply(images=[b'\\x89PNG\\r\\n\\x1a\\n'] * 50))" + _AND_WAIT,
        "",
    ),
    "a message with an image that is no PNG": fatal(
        _SOCKET + _REPLY + "write(reply(images=[b'GIF89a']))" + _AND_WAIT, ""
    ),
    "two replies": Attack(
        _SOCKET + _REPLY + "write(reply() + reply())", ("ok", "killed"), survives=False
    ),
    "a closed connection": fatal(_SOCKET + "os.close(conn)"),
    "descriptors for the server": Attack(
        _SOCKET + _REPLY + "import socket\n"
        "s = socket.socket(fileno=os.dup(conn))\n"
        "socket.send_fds(s, [reply()], [0] * 200)",
        ("ok", "killed"),
        survives=None,
    ),
    # The shell.
    "no builtins": Attack("import builtins\nbuiltins.__dict__.clear()", ("error", "ok", "killed")),
    "a broken shell": Attack("get_ipython().run_cell = None", ("ok",)),
    "other modules in our place": Attack(
        "import sys\nfor name in list(sys.modules):\n"
        "    if name.startswith('deepeyes_plugins'): sys.modules[name] = None",
        ("ok",),
    ),
    "a mute connection": fatal(
        "import socket\nsocket.socket.sendall = lambda *_: None",
        "did not react",
        0.3,
    ),
    "no collector": harmless("import gc\ngc.disable(); gc.freeze(); gc.set_threshold(0)"),
    "a hook at the end": harmless("import atexit\natexit.register(print, 'late')"),
    "faulthandler": Attack(
        "import faulthandler, sys\nfaulthandler.dump_traceback_later(0.05, exit=True, file=2)\n"
        "import time; time.sleep(5)",
        ("killed", "error"),
    ),
    # What is shown.
    "a raising repr": error("class A:\n def __repr__(self): raise OSError('no')\nA()", "OSError"),
    "a repr that is no text": error("class A:\n def __repr__(self): return 5\nA()", "TypeError"),
    "a picture that raises": Attack(
        "class A:\n def _repr_png_(self): raise OSError('no')\nA()", ("ok", "error")
    ),
    "a picture that is none": Attack(
        "class A:\n def _repr_png_(self): return b'\\x89PNG\\r\\n\\x1a\\n' + b'x' * 99\nA()",
        ("ok", "error"),
        says="not a readable image",
    ),
    "an error that cannot be told": error(
        "class E(Exception):\n def __str__(self): raise OSError('no')\nraise E"
    ),
    "an error with a long name": error("raise type('E' * 10**7, (Exception,), {})"),
    "names that are no text": harmless(
        "globals().update({'\\ud800': 1, 'n' * 10**6: 2, '\\0': 3})\nglobals()[5] = 4"
    ),
    "characters that are none": harmless(r"print('a\ud800b\0c'); '\ud800\0'"),
    # Code.
    "a megabyte of code": harmless("x = 1\n" * 170_000, timeout=60),
    "a megabyte in one literal": harmless(f"x = '{'y' * (1 << 20)}'", timeout=60),
    "deeply nested code": Attack("(" * 5000 + ")" * 5000, ("error", "killed"), 30),
}
