"""What this machine has, asked of the machine: graphics card by nvidia-smi, else processor and memory from /proc."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROBE_TIMEOUT_S = 5.0
PROC = Path("/proc")


@dataclass(frozen=True)
class Hardware:
    """The device that models run on. Memory in MiB: the card's, or the machine's without one."""

    device: str = ""
    memory_total: int = 0
    memory_free: int = 0


def probe(proc: Path = PROC, nvidia_smi: str | None = None) -> Hardware:
    """Look again: free memory changes. Blocks up to five seconds; raises nothing, what cannot be read is empty or 0."""
    command = nvidia_smi or shutil.which("nvidia-smi")
    return (_cards(command) if command else None) or _processor(proc)


def parse_cards(text: str) -> Hardware | None:
    """Output of nvidia-smi: a line a card of name, total MiB, free MiB. Equal cards are counted, memory is added."""
    cards = [
        (match[1].strip(), int(match[2]), int(match[3]))
        for line in text.splitlines()
        if (match := re.fullmatch(r"(.+?),\s*(\d+),\s*(\d+)\s*", line))
    ]
    if not cards:
        return None
    names = list(dict.fromkeys(name for name, _, _ in cards))
    name = f"{len(cards)}x {names[0]}" if len(cards) > 1 and len(names) == 1 else " + ".join(names)
    return Hardware(name, sum(total for _, total, _ in cards), sum(free for _, _, free in cards))


def parse_processor(cpuinfo: str, meminfo: str) -> Hardware:
    """The contents of /proc/cpuinfo and /proc/meminfo."""
    names = re.findall(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    cores = len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE))
    memory = {key: int(kib) // 1024 for key, kib in re.findall(r"^(\w+):\s*(\d+) kB$", meminfo, re.MULTILINE)}
    total = memory.get("MemTotal", 0)
    device = f"{cores}x {names[0].strip()}" if names else f"{cores}x CPU" if cores else "CPU"
    return Hardware(device, total, min(total, memory.get("MemAvailable", 0)))


def _cards(command: str) -> Hardware | None:
    query = [command, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return parse_cards(done.stdout)


def _processor(proc: Path) -> Hardware:
    def read(name: str) -> str:
        try:
            return (proc / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    return parse_processor(read("cpuinfo"), read("meminfo"))
