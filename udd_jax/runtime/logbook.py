"""The output of a run: lines for people, progress bars, numbers for the report.

`metrics.jsonl` has one JSON object a line, `{"step": 20, "loss": 2.31, ...}`, flushed at once. The
numbers of a step may take several lines. A restart cuts the lines beyond the restored step. The
file then equals that of a run that was never stopped, except for the entries in `TIMES`.
TensorBoard reads the same numbers from event files, on request.

In a run of many processes only the first one prints and writes.
"""

import json
import math
import sys
import time

import jax
import tqdm
from etils import epath

from udd_jax.errors import UserError
from udd_jax.runtime import files

# Entries that may differ between two runs of the same configuration.
TIMES = ("seconds", "step_seconds", "data_seconds", "memory_gib")


def say(text: str):
    """Prints one line, above the progress bar if there is one."""
    if _is_first():
        encoding = sys.stdout.encoding or "utf-8"  # an ASCII terminal gets escapes
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        tqdm.tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


class Logbook:
    """The metrics of one run: `directory/metrics.jsonl`, and `directory/tensorboard` on request."""

    def __init__(self, directory, tensorboard: bool = False):
        self.path = epath.Path(directory) / "metrics.jsonl"
        self._started = time.time()
        self._file = self._events = self._make_events = None
        if tensorboard and _is_first():
            try:
                import tensorboardX
            except ImportError:
                raise UserError(
                    "tensorboard = True needs the package tensorboardX: pip install tensorboardX"
                ) from None
            folder = str(epath.Path(directory) / "tensorboard")
            self._make_events = lambda step: tensorboardX.SummaryWriter(folder, purge_step=step)

    def write(self, step: int, **scalars):
        """Appends a line. NaN and infinity become null."""
        if not _is_first():
            return
        line = {"step": int(step)}
        for name, value in scalars.items():
            value = float(value) if not isinstance(value, int) else value
            line[name] = value if math.isfinite(value) else None
        line["seconds"] = round(time.time() - self._started, 2)
        self._append(json.dumps(line) + "\n")
        if self._make_events:
            self._events = self._events or self._make_events(step)
            for name, value in line.items():
                if value is not None and name != "step":
                    self._events.add_scalar(name, value, step)
            self._events.flush()

    def _append(self, text: str):
        if "://" in str(self.path):  # an object has no end to write to
            self.path.write_text((self.path.read_text() if self.path.exists() else "") + text)
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a")
        self._file.write(text)
        self._file.flush()

    def cut(self, step: int):
        """Drops the lines after `step`, and a half-written last line of a killed run."""
        self.close()
        if _is_first() and self.path.exists():
            kept = [line for line in self.lines() if line["step"] <= step]
            files.write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def lines(self) -> list[dict]:
        """All whole lines, in order; [] where there is no file."""
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
        return lines

    def columns(self) -> dict[str, tuple[list[int], list[float]]]:
        """Name -> (steps, values), for curves, without nulls."""
        columns = {}
        for line in self.lines():
            for name, value in line.items():
                if name != "step" and value is not None:
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(line["step"])
                    values.append(value)
        return columns

    def close(self):
        for file in (self._file, self._events):
            if file is not None:
                file.close()
        self._file = self._events = None


def progress(total: int, description: str, start: int = 0, unit: str = "step") -> "Bar":
    """A bar with the rate, the time left and `set_postfix(loss=...)`; use it in a `with` block.

    On a terminal it is the bar of tqdm. Elsewhere it prints a line every half minute and at the
    end, so that a log file stays readable.
    """
    return Bar(total=total, desc=description, initial=start, unit=unit, disable=not _is_first())


def each(items, description: str, unit: str = "item"):
    """Yields the items of a sequence while a bar counts them."""
    with progress(len(items), description, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()


class Bar(tqdm.tqdm):
    """tqdm, which prints whole lines if the output is not a terminal."""

    monitor_interval = 0
    every = 30.0

    def __init__(self, **options):
        self._watched = sys.stderr.isatty()
        self._printed = time.time()
        super().__init__(file=sys.stderr, dynamic_ncols=self._watched, **options)

    def display(self, msg=None, pos=None):
        if self._watched:
            return super().display(msg, pos)
        now = time.time()
        if now - self._printed >= self.every:
            self._printed = now
            self._print_line()
        return True

    def clear(self, nolock=False):
        if self._watched:
            super().clear(nolock)

    def close(self):
        if not self.disable and not self._watched:
            self._print_line()
            self.disable = True  # tqdm itself would print a bar at the end
            self._decr_instances(self)
        super().close()

    def _print_line(self):
        print(self.format_meter(**{**self.format_dict, "ncols": None, "bar_format": LINE}),
              file=sys.stderr, flush=True)  # fmt: skip


LINE = "{desc}: {n_fmt}/{total_fmt} {unit}s, {rate_fmt}, {elapsed} gone, {remaining} left{postfix}"


def _is_first() -> bool:
    return not jax.distributed.is_initialized() or jax.process_index() == 0
