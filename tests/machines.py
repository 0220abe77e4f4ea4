"""Several machines on this one: network namespaces, joined by a bridge, each with a host name."""

import ctypes
import fcntl
import os
import random
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from heapq import heappop, heappush
from itertools import count
from pathlib import Path

MARK = "MAKEMOE_MACHINES"
"""Environment variable by which the processes on these machines are found again."""

NUMBERS = count()
"""Of the groups of machines that this process makes."""

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
PACKET = 1 << 16


def why_not() -> str:
    """Why this machine cannot play several; empty if it can."""
    if sys.platform != "linux" or not shutil.which("ip") or not shutil.which("unshare"):
        return "needs Linux with iproute2 and unshare"
    if os.geteuid():
        return "needs root, to make network namespaces"
    name = f"moe{os.getpid()}t"
    made = ip("netns", "add", name, check=False)
    ip("netns", "del", name, check=False)
    return "" if made == 0 else "this kernel makes no network namespaces"


def ip(*words: str, check: bool = True) -> int:
    """Call iproute2."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert not check or not done.returncode, f"ip {' '.join(words)}: {done.stderr}"
    return done.returncode


class Machines:
    """Machines with the addresses 10.77.0.1 ... and the host names machine1 ..., which all know.

    Attributes:
        started: the processes started on them.
    """

    def __init__(self, size: int, device: str = "eth0") -> None:
        own = f"moe{os.getpid()}x{next(NUMBERS)}"
        self.names = [f"{own}n{n}" for n in range(1, size + 1)]
        self.switch = f"{own}s"
        self.device = device
        self.started: list[subprocess.Popen[bytes]] = []

    def address(self, machine: int) -> str:
        """Of machine 0, 1, ..."""
        return f"10.77.0.{machine + 1}"

    def hosts(self) -> str:
        """Their /etc/hosts."""
        named = [f"{self.address(n)} machine{n + 1}" for n in range(len(self.names))]
        return "\n".join(["127.0.0.1 localhost", *named, ""])

    def join(self) -> None:
        """Make the machines and connect them to a switch."""
        for name in (self.switch, *self.names):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for n, name in enumerate(self.names):
            end = f"p{n}"
            pair = ("type", "veth", "peer", "name", end, "netns", self.switch)
            ip("-n", name, "link", "add", "eth0", *pair)
            ip("-n", name, "addr", "add", f"{self.address(n)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", self.switch, "link", "set", end, "master", "br0", "up")

    def cut(self, machine: int) -> None:
        """Cut a machine off: packets to it and from it are lost, and nobody is told."""
        ip("-n", self.switch, "link", "set", f"p{machine}", "nomaster")

    def start(
        self,
        machine: int,
        command: Sequence[str],
        folder: Path,
        variables: Mapping[str, str],
        clock: int = 0,
    ) -> "subprocess.Popen[bytes]":
        """Start a command on a machine; what it says goes to folder/machineN.txt, beside hosts.

        Args:
            machine: 0, 1, ...
            command: the command.
            folder: where it runs.
            variables: of its environment, besides that of this process.
            clock: by how many seconds the clock that counts from the start of a machine differs.
        """
        host = f"machine{machine + 1}"
        shifted = ["--time", f"--monotonic={clock}", f"--boottime={clock}"] if clock else []
        enter = ["ip", "netns", "exec", self.names[machine]]
        place = ["unshare", "--uts", *shifted, "--kill-child", "--fork"]
        (folder / "hosts").write_text(self.hosts())
        script = f'hostname {host}; mount --bind hosts /etc/hosts; exec "$@"'
        with (folder / f"{host}.txt").open("ab") as said:
            process = subprocess.Popen(
                [*enter, *place, "sh", "-c", script, "sh", *command],
                cwd=folder,
                env={**os.environ, "GLOO_SOCKET_IFNAME": self.device, MARK: self.switch}
                | dict(variables),
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def processes(self, machine: int) -> list[int]:
        """The processes on a machine."""
        done = subprocess.run(
            ["ip", "netns", "pids", self.names[machine]],
            capture_output=True,
            text=True,
            check=False,
        )
        return [int(word) for word in done.stdout.split()]

    def remove(self) -> None:
        """End all that runs on them, and take them away."""
        for machine, name in enumerate(self.names):
            for _ in range(50):
                if not (left := self.processes(machine)):
                    break
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)
            ip("netns", "del", name, check=False)
        for process in self.started:
            process.kill()
            process.wait()
        ip("netns", "del", self.switch, check=False)


@contextmanager
def machines(size: int) -> Iterator[Machines]:
    """Some machines, which are taken away afterwards whatever happens."""
    made = Machines(size)
    try:
        made.join()
        yield made
    finally:
        made.remove()


@contextmanager
def bad_link(delay_s: float, loss: float, seed: int = 1) -> Iterator[Machines]:
    """Two machines whose packets are late, and of which some are lost.

    netem does this in the kernel, if the kernel has it; this is a process that moves packets
    between two TUN devices.
    """
    made = Machines(2, device="tun0")
    relay = None
    try:
        for name in (made.switch, *made.names):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        words = [*made.names, str(delay_s), str(loss), str(seed)]
        relay = subprocess.Popen([sys.executable, __file__, *words])
        for n, name in enumerate(made.names):
            wait_for(lambda name=name: ip("-n", name, "link", "show", "tun0", check=False) == 0)
            ends = (made.address(n), "peer", made.address(1 - n))
            ip("-n", name, "addr", "add", *ends, "dev", "tun0")
            ip("-n", name, "link", "set", "tun0", "up")
        yield made
    finally:
        made.remove()
        if relay is not None:
            relay.kill()
            relay.wait()


def wait_for(there: Callable[[], object], longest_s: float = 60.0) -> None:
    """Wait until something is so; AssertionError if it takes too long."""
    deadline = time.monotonic() + longest_s
    while not there():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def relay(names: Sequence[str], delay_s: float, loss: float, seed: int) -> None:
    """Move packets between the namespaces, late, and without some of them."""
    rng, queue, ends = random.Random(seed), [], [tun_in(name) for name in names]
    selector = selectors.DefaultSelector()
    for end in ends:
        selector.register(end, selectors.EVENT_READ)
    number = 0
    while True:
        wait_s = max(0.0, queue[0][0] - time.monotonic()) if queue else None
        for key, _ in selector.select(wait_s):
            with suppress(BlockingIOError):
                while packet := os.read(key.fd, PACKET):
                    if rng.random() >= loss:
                        to = ends[1 - ends.index(key.fd)]
                        heappush(
                            queue, (time.monotonic() + delay_s, number := number + 1, to, packet)
                        )
        while queue and queue[0][0] <= time.monotonic():
            *_, to, packet = heappop(queue)
            with suppress(OSError):
                os.write(to, packet)


def tun_in(name: str) -> int:
    """A TUN device in a namespace, as a file that gives and takes its packets."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{name}") as space:
        assert libc.setns(space.fileno(), CLONE_NEWNET) == 0
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"tun0", IFF_TUN | IFF_NO_PI))
    return device


if __name__ == "__main__":
    relay(sys.argv[1:3], *map(float, sys.argv[3:5]), int(sys.argv[5]))
