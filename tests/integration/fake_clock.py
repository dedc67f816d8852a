"""libfaketime over a file: the clock of the daemons that are started with it moves while they run; their timers do not."""
import pathlib
import subprocess

from stack import SANITIZED


class Clock:
    def __init__(self, directory):
        self.file = pathlib.Path(directory) / "clock"
        self.seconds = 0
        self.move(0)
        lib = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        preload = str(lib)
        if SANITIZED:
            asan = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True).stdout.strip()
            preload = f"{asan} {lib}"
        self.env = {"LD_PRELOAD": preload, "FAKETIME_TIMESTAMP_FILE": str(self.file), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    def move(self, seconds):
        """To so many seconds from the real time."""
        self.seconds = seconds
        tmp = self.file.with_suffix(".tmp")
        tmp.write_text(f"{seconds:+d}")
        tmp.rename(self.file)

    def forward(self, seconds):
        self.move(self.seconds + seconds)
