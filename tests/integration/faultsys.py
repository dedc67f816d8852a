"""faultsys.c as the tests hold it: built once, preloaded by the environment, driven by a mapped file."""
import mmap
import pathlib
import struct
import subprocess

from stack import SANITIZED

FIELDS = ("eintr_every", "short_every", "again_every", "file_fails_at", "file_fails_for", "file_errno", "resolver_ms", "calls", "hits", "file_hits", "unsynced", "synced")


class FaultSys:
    def __init__(self, directory):
        d = pathlib.Path(directory)
        lib = d / "faultsys.so"
        subprocess.run(["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared",
                        str(pathlib.Path(__file__).with_name("faultsys.c")), "-o", str(lib), "-ldl"], check=True)
        control = d / "faultsys.control"
        control.write_bytes(b"\0" * 4096)
        self.f = open(control, "r+b")
        self.m = mmap.mmap(self.f.fileno(), 4096)
        preload = str(lib)
        if SANITIZED:  # its runtime must come first
            asan = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True).stdout.strip()
            preload = f"{asan} {lib}"
        self.env = {"LD_PRELOAD": preload, "FAULTSYS_CONTROL": str(control)}

    def set(self, **fields):
        for name, value in fields.items():
            struct.pack_into("i", self.m, 4 * FIELDS.index(name), value)

    def get(self, name):
        return struct.unpack_from("i", self.m, 4 * FIELDS.index(name))[0]

    def calm(self):
        self.set(**{n: 0 for n in FIELDS[:7]})

    def close(self):
        self.m.close()
        self.f.close()
