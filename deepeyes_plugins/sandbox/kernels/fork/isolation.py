"""Process isolation with the mechanisms that Linux offers to unprivileged processes.

The layers, in the order in which a session enters them:

- scratch_quota: a private tmpfs mounted on its folder, which ends with the session;
- no_new_privileges: no gain of rights by exec; a requirement of the layers below;
- resource_limits: address space, file size, open files, no core dumps;
- capabilities: none, also if the server runs as root;
- landlock: denies files outside the allowed paths, TCP, and signals to other processes;
- seccomp: denies sockets, new processes, exec, ptrace, signals to others, mounts, what Landlock
  does not cover (chmod, chown, utime, xattrs, inotify), and kernel interfaces with a history of
  vulnerabilities.

Seccomp uses a deny list, not an allow list: NumPy, OpenCV and others need many system calls, and
Landlock, capabilities and file descriptors already limit what those can reach.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

LAYERS: Final = (
    "scratch_quota",
    "no_new_privileges",
    "resource_limits",
    "capabilities",
    "landlock",
    "seccomp",
)

SCRATCH_FILES: Final = 4096
"""Maximum number of files and folders of a session."""

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_NO_NEW_PRIVS = 39
_CLONE_THREAD = 0x10000


class IsolationError(Exception):
    """A layer that the kernel supports could not be entered."""


class _Machine(NamedTuple):
    """System call numbers of one CPU architecture."""

    audit_arch: int
    capset: int
    seccomp: int
    special: dict[str, int]
    network: tuple[int, ...]
    denied: tuple[int, ...]


# Numbers from 424 on are the same on all architectures.
_COMMON_DENIED = (
    # pidfd_send_signal, pidfd_getfd, io_uring_setup, process_madvise, memfd_secret
    *(424, 438, 425, 440, 447),
    # open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr, quotactl_fd
    *(428, 429, 430, 431, 432, 433, 442, 443),
    # fchmodat2, setxattrat, removexattrat, file_setattr
    *(452, 463, 466, 469),
    # statmount, listmount, open_tree_attr, listns
    *(457, 458, 467, 470),
)
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT, _CLONE3 = 444, 445, 446, 435

_MACHINES: Final = {
    "x86_64": _Machine(
        audit_arch=0xC000003E,
        capset=126,
        seccomp=317,
        special={
            "clone": 56,
            "kill": 62,
            "tgkill": 234,
            "prctl": 157,
            "prlimit64": 302,
            "socketpair": 53,
            "fcntl": 72,
            "ioctl": 16,
            "socket": 41,
        },
        # socket, connect, accept, accept4, bind, listen
        network=(41, 42, 43, 288, 49, 50),
        denied=(
            # fork, vfork, execve, execveat
            *(57, 58, 59, 322),
            # tkill, rt_sigqueueinfo, rt_tgsigqueueinfo, ptrace, process_vm_readv and _writev, kcmp
            *(200, 129, 297, 101, 310, 311, 312),
            # mount, umount2, pivot_root, chroot, unshare, setns, open_by_handle_at,
            # name_to_handle_at
            *(165, 166, 155, 161, 272, 308, 304, 303),
            # bpf, userfaultfd, perf_event_open, keyctl, add_key, request_key, fanotify_init
            *(321, 323, 298, 250, 248, 249, 300),
            # chmod, fchmod, fchmodat, chown, fchown, lchown, fchownat
            *(90, 91, 268, 92, 93, 94, 260),
            # utime, utimes, futimesat, utimensat, setxattr x3, removexattr x3
            *(132, 235, 261, 280, 188, 189, 190, 197, 198, 199),
            # inotify_init, inotify_init1, inotify_add_watch: reveal names of other users' files
            *(253, 294, 254),
            # setpriority, sched_setscheduler, _setattr, _setparam, _setaffinity, ioprio_set
            *(141, 144, 314, 142, 203, 251),
            # memfd_create, mq_open, mq_unlink: memory that outlives the process or evades limits
            *(319, 240, 241),
            # shmget, shmat, shmctl, msgget, msgsnd, msgrcv, msgctl, semget, semop, semctl,
            # semtimedop: reach those of other programs
            *(29, 30, 31, 68, 69, 70, 71, 64, 65, 66, 220),
            # reboot, kexec x2, module x3, swapon, swapoff, quotactl, acct, syslog, personality
            *(169, 246, 320, 175, 313, 176, 167, 168, 179, 163, 103, 135),
            # settimeofday, clock_settime, clock_adjtime, adjtimex, sethostname, setdomainname
            *(164, 227, 305, 159, 170, 171),
            # migrate_pages, move_pages, iopl, ioperm, modify_ldt, lookup_dcookie, vhangup
            *(256, 279, 172, 173, 154, 212, 153),
        ),
    ),
    "aarch64": _Machine(
        audit_arch=0xC00000B7,
        capset=91,
        seccomp=277,
        special={
            "clone": 220,
            "kill": 129,
            "tgkill": 131,
            "prctl": 167,
            "prlimit64": 261,
            "socketpair": 199,
            "fcntl": 25,
            "ioctl": 29,
            "socket": 198,
        },
        network=(198, 203, 202, 242, 200, 201),
        denied=(
            *(221, 281),
            *(130, 138, 240, 117, 270, 271, 272),
            *(40, 39, 41, 51, 97, 268, 265, 264),
            *(280, 282, 241, 219, 217, 218, 262),
            *(52, 53, 55, 54),
            *(88, 5, 6, 7, 14, 15, 16),
            *(26, 27),
            *(140, 119, 274, 118, 122, 30),
            *(279, 180, 181),
            *(194, 196, 195, 186, 189, 188, 187, 190, 193, 191, 192),
            *(142, 104, 294, 105, 273, 106, 224, 225, 60, 89, 116, 92),
            *(170, 112, 266, 171, 161, 162),
            *(238, 239, 18, 58),
        ),
    ),
}

_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    value: int = _libc.syscall(ctypes.c_long(number), *converted)
    if value < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"system call {number}")
    return value


def _prctl(option: int, *arguments: int) -> int:
    padded = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    value: int = _libc.prctl(option, *padded)
    if value < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"prctl {option}")
    return value


def die_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel end this process when the thread that forked it ends.

    Args:
        parent: Process ID of the parent; if it has ended already, this process exits at once.
        by: Signal that ends it.
    """
    _prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os._exit(1)


def mount_scratch(folder: str, size: int) -> None:
    """Mount a private tmpfs on a folder, invisible to other processes.

    Args:
        folder: An empty folder.
        size: Size in bytes.

    Raises:
        OSError: The system does not allow mount namespaces to this user.
    """
    user, group = os.getuid(), os.getgid()
    if user == 0:
        _call(_libc.unshare, _CLONE_NEWNS)
    else:
        _call(_libc.unshare, _CLONE_NEWNS | _CLONE_NEWUSER)
        for name, mapping in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(mapping)
    # Otherwise the mount would propagate to the parent namespace.
    _call(_libc.mount, None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    options = f"size={size},nr_inodes={SCRATCH_FILES},mode=700".encode("ascii")
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    _call(_libc.mount, b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options)


def _call(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def mapped_bytes() -> int:
    """Return the current size of this process's address space."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def landlock_version() -> int:
    """Return the kernel's Landlock ABI version; 0 if it has no Landlock."""
    try:
        return _syscall(_LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def probe() -> dict[str, str]:
    """Detect which layers the kernel supports.

    Returns:
        Layer name to "active" (it will be entered) or to the reason why it is missing.
    """
    state = dict.fromkeys(LAYERS, "active")
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        system = f"{sys.platform} on {platform.machine()}"
        unsupported = dict.fromkeys(LAYERS, f"not supported on {system}")
        return unsupported | {"resource_limits": "active", "scratch_quota": "active"}
    try:
        _prctl(_PR_GET_NO_NEW_PRIVS)
    except OSError as error:
        state["no_new_privileges"] = str(error)
    if landlock_version() == 0:
        state["landlock"] = "this kernel has no Landlock, or it is not enabled (lsm=landlock)"
    try:
        # SECCOMP_GET_ACTION_AVAIL for SECCOMP_RET_ERRNO.
        _syscall(machine.seccomp, 2, 0, ctypes.byref(ctypes.c_uint32(0x00050000)))
    except OSError as error:
        state["seccomp"] = f"this kernel has no seccomp filters: {error}"
    return state


NETWORK_PATHS: Final = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/services"),
    *("/etc/ssl", "/etc/ca-certificates", "/etc/pki", "/run/systemd/resolve"),
)
"""Files for name resolution and certificates."""


def interpreter_paths() -> list[str]:
    """Return the paths that Python code reads: modules, libraries, fonts, time zone, devices."""
    paths = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()]
    paths += [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    paths += ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/fonts", "/etc/localtime"]
    paths += ["/etc/mime.types", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"]
    return sorted({os.path.realpath(path) for path in paths if os.path.exists(path)})


# Landlock's file rights, by bit.
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_FILE = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_MAKE_LINK, _REFER, _TRUNCATE = 1 << 12, 1 << 13, 1 << 14
_READ = _READ_FILE | _READ_DIR
_CHANGE = _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _REFER
_SCRATCH = _READ | _CHANGE | _MAKE_DIR | _MAKE_FILE | _MAKE_LINK
# Readable files in /proc/self; others reveal mounts, networks and environments.
_OWN_PROC = ("cmdline", "comm", "io", "limits", "maps", "smaps", "stat", "statm", "status")
# Number of file rights that each ABI version supports, from version 1.
_FILE_RIGHTS = (13, 14, 15, 15, 16)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def _seccomp_program(machine: _Machine, own_pid: int, network: bool) -> bytes:
    """Assemble the filter in classic BPF: it allows all system calls but those of its rules."""
    load, equal, at_least, any_bit, mask, ret = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    refuse, unknown = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    code: list[tuple[int, int, int, int]] = []

    def argument(index: int) -> tuple[int, int, int, int]:
        return (load, 0, 0, 16 + 8 * index)

    def rule(name: str, *test: tuple[int, int, int, int]) -> None:
        # The test ends in a jump over one instruction if the call is allowed, else over none.
        body = [*test, (ret, 0, 0, refuse), (ret, 0, 0, allow)]
        code.extend([(equal, 0, len(body), machine.special[name]), *body])

    code += [(load, 0, 0, 4), (equal, 1, 0, machine.audit_arch), (ret, 0, 0, kill)]
    code += [(load, 0, 0, 0)]
    if machine.audit_arch == 0xC000003E:
        code += [(at_least, 0, 1, 0x40000000), (ret, 0, 0, refuse)]  # The x32 numbers.
    # ENOSYS rather than EPERM: the C library then creates threads with clone, whose flags a filter
    # can check.
    code += [(equal, 0, 1, _CLONE3), (ret, 0, 0, unknown)]
    rule("clone", argument(0), (any_bit, 1, 0, _CLONE_THREAD))
    rule("kill", argument(0), (equal, 1, 0, own_pid))
    rule("tgkill", argument(0), (equal, 1, 0, own_pid))
    rule("prctl", argument(0), (equal, 0, 1, _PR_SET_PDEATHSIG))
    rule("prlimit64", argument(0), (equal, 1, 0, 0))
    # Datagram pairs can send to any named socket. 1 is SOCK_STREAM.
    rule("socketpair", argument(1), (mask, 0, 0, 0xF), (equal, 1, 0, 1))
    # F_SETOWN, F_SETSIG and F_SETOWN_EX can signal any process; F_SETLEASE can block others that
    # open a file.
    rule(
        "fcntl",
        argument(1),
        *((equal, 3, 0, 8), (equal, 2, 0, 10), (equal, 1, 0, 15), (equal, 0, 1, 1024)),
    )
    # The ioctls of sockets: signals likewise, and the machine's network interfaces.
    rule("ioctl", argument(1), (mask, 0, 0, 0xFFFFFF00), (equal, 0, 1, 0x8900))
    if network:
        # AF_INET and AF_INET6 only: local sockets reach services on this machine.
        rule("socket", argument(0), (equal, 2, 0, 2), (equal, 1, 0, 10))
    for number in (*machine.denied, *_COMMON_DENIED, *(() if network else machine.network)):
        code += [(equal, 0, 1, number), (ret, 0, 0, refuse)]
    code += [(ret, 0, 0, allow)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


@dataclass(frozen=True)
class Jail:
    """Remaining rights of an isolated process.

    Attributes:
        layers: Names of the layers to enter, a subset of LAYERS.
        readable: Paths that are readable, recursively.
        address_space_bytes: Maximum address space, including libraries.
        file_bytes: Maximum size of a file.
        scratch_bytes: Maximum total size of all files.
        network: Whether TCP and UDP are allowed.
    """

    layers: Sequence[str]
    readable: Sequence[str]
    address_space_bytes: int
    file_bytes: int
    scratch_bytes: int
    network: bool = False

    def enter(self, scratch: str | None) -> None:
        """Drop all other rights, irreversibly.

        Args:
            scratch: Writable folder, if any.

        Raises:
            IsolationError: A layer could not be entered; the process must not run untrusted code.
        """
        steps = {
            "scratch_quota": lambda: self._mount(scratch),
            "no_new_privileges": lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1),
            "resource_limits": self._limit_resources,
            "capabilities": _drop_capabilities,
            "landlock": lambda: self._landlock(scratch),
            "seccomp": lambda: _seccomp(self.network),
        }
        for layer in LAYERS:
            if layer in self.layers:
                try:
                    steps[layer]()
                except OSError as error:
                    raise IsolationError(f"cannot enter isolation layer {layer}: {error}") from None

    def _mount(self, scratch: str | None) -> None:
        if scratch is not None:
            mount_scratch(scratch, self.scratch_bytes)

    def _limit_resources(self) -> None:
        limits = {
            resource.RLIMIT_AS: self.address_space_bytes,
            resource.RLIMIT_FSIZE: self.file_bytes,
            resource.RLIMIT_NOFILE: 256,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_MEMLOCK: 0,
        }
        for kind, value in limits.items():
            _, hard = resource.getrlimit(kind)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))

    def _landlock(self, scratch: str | None) -> None:
        version = landlock_version()
        known = (1 << _FILE_RIGHTS[min(version, len(_FILE_RIGHTS)) - 1]) - 1
        network = 0b11 if version >= 4 and not self.network else 0
        scope = 0b11 if version >= 6 else 0
        attributes = struct.pack("=QQQ", known, network, scope)
        size = 24 if scope else 16 if network else 8
        rules = _syscall(_LANDLOCK_CREATE, attributes, size, 0)
        try:
            for path in self.readable:
                _allow(rules, path, _READ)
            _allow(rules, "/proc/self", _READ_DIR)
            for name in _OWN_PROC:
                _allow(rules, f"/proc/self/{name}", _READ_FILE)
            _allow(rules, "/dev/null", (_READ_FILE | _WRITE_FILE | _TRUNCATE) & known)
            if scratch is not None:
                _allow(rules, scratch, _SCRATCH & known)
            _syscall(_LANDLOCK_RESTRICT, rules, 0)
        finally:
            os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return
    try:
        if not os.path.isdir(path):
            rights &= _READ_FILE | _WRITE_FILE | _TRUNCATE
        _syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, target), 0)
    finally:
        os.close(target)


def _drop_capabilities() -> None:
    header = struct.pack("=Ii", 0x20080522, 0)
    _syscall(_MACHINES[platform.machine()].capset, header, b"\0" * 24)


def _seccomp(network: bool) -> None:
    machine = _MACHINES[platform.machine()]
    program = _seccomp_program(machine, os.getpid(), network)
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = _Program(len(program) // 8, ctypes.addressof(buffer))
    _syscall(machine.seccomp, 1, 0, ctypes.byref(filter_))


def missing(state: dict[str, str], layers: Iterable[str] = LAYERS) -> dict[str, str]:
    """Return the layers of a ``probe()`` that the kernel does not support, with the reasons."""
    return {layer: state[layer] for layer in layers if not state[layer].startswith("active")}
