"""The output of a run: lines for people, progress bars, numbers for the report.

`metrics.jsonl` has one JSON object a line, `{"step": 20, "loss": 2.31, ...}`, flushed at once. The
numbers of a step may take several lines. A restart cuts the lines beyond the restored step. The
file then equals that of a run that was never stopped, except for the entries in `TIMES`.
TensorBoard reads the same numbers from event files, on request.

In a run of many processes only the first one prints and writes.
"""

import contextlib
import json
import math
import os
import sys
import threading
import time

import jax
import tqdm
from etils import epath

from udd_jax.errors import UserError
from udd_jax.runtime import files, provenance

# Entries that may differ between two runs of the same configuration.
TIMES = ("seconds", "step_seconds", "data_seconds", "memory_gib")


def say(text: str):
    """Prints one line, above the progress bar if there is one."""
    if _is_first():
        encoding = sys.stdout.encoding or "utf-8"  # an ASCII terminal gets escapes
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        tqdm.tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


@contextlib.contextmanager
def timed(spent: dict, name: str):
    """Puts the seconds of the block into `spent` under its name."""
    started = time.perf_counter()
    yield
    spent[name] = round(time.perf_counter() - started, 3)


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
        if files.in_bucket(self.path):  # an object has no end to write to
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


def begin() -> None:
    """The first line of a run: the machine."""
    say(provenance.machine())


def finish(made: str, where, *following: str) -> None:
    """The last lines of a run: what was made, where, and what to try next."""
    after = ["next:", *(f"  {line}" for line in following)] if following else []
    say("\n".join([f"{made}: {where}", *after]))


def progress(
    total: int, description: str, start: int = 0, unit: str = "step", compiles: bool = True
) -> "Bar":
    """A bar with the rate, the time left and `set_postfix(loss=...)`; use it in a `with` block.

    On a terminal it is the bar of tqdm. Elsewhere it prints a line every half minute and at the
    end, so that a log file stays readable. With `compiles` the first step also compiles: until it
    is done the bar says so, and its time does not count for the rate.
    """
    options = {"total": total, "desc": description, "initial": start, "unit": unit}
    return Bar(compiles=compiles, disable=not _is_first(), **options)


def each(items, description: str, unit: str = "item"):
    """Yields the items of a sequence while a bar counts them."""
    with progress(len(items), description, unit=unit, compiles=False) as bar:
        for item in items:
            yield item
            bar.update()


class Bar(tqdm.tqdm):
    """tqdm, which prints whole lines if the output is not a terminal, and knows of compilation."""

    monitor_interval = 0
    every = 30.0

    def __init__(self, compiles=False, **options):
        self._watched = sys.stderr.isatty()
        self._compiling, self._before = compiles, 0.0  # seconds before the first step was done
        self._over = threading.Event()
        width = _width() if self._watched else None
        super().__init__(file=sys.stderr, ncols=width or 80, dynamic_ncols=bool(width), **options)
        if self.disable:
            return
        if compiles:
            self.set_postfix_str("compiling", refresh=self._watched)
        if not self._watched:
            threading.Thread(target=self._print_lines, daemon=True).start()

    def update(self, n=1):
        if self.disable or not self._compiling:
            return super().update(n)
        self._compiling = False
        if self.postfix == "compiling":
            self.postfix = ""
        self.n += n
        now = self._time()
        self._before += now - self.start_t
        # The clock of the rate starts here.
        self.initial = self.last_print_n = self.n
        self.start_t = self.last_print_t = now
        return self.refresh()

    @property
    def format_dict(self):
        """As of tqdm; the elapsed time has that of compilation, the rate does not."""
        found = super().format_dict
        if not self.disable and found["elapsed"]:
            if found["rate"] is None and self.n > self.initial:
                found["rate"] = (self.n - self.initial) / found["elapsed"]
            found["elapsed"] += self._before
            if found["rate"] is None:  # else tqdm takes that of no step at all
                found["initial"] = found["n"]
        return found

    def display(self, msg=None, pos=None):
        return super().display(msg, pos) if self._watched else True

    def clear(self, nolock=False):
        if self._watched:
            super().clear(nolock)

    def close(self):
        self._over.set()
        if not self.disable and not self._watched:
            self._print_line()
            self.disable = True  # tqdm itself would print a bar at the end
            self._decr_instances(self)
        super().close()

    def _print_lines(self):
        """In a thread, since a compilation may take longer than the time between two lines."""
        while not self._over.wait(self.every):
            self._print_line()

    def _print_line(self):
        found = self.format_dict
        form = LINE if found["rate"] else SHORT
        line = self.format_meter(**found | {"ncols": None, "bar_format": form})
        print(line, file=sys.stderr, flush=True)


LINE = "{desc}: {n_fmt}/{total_fmt} {unit}s, {rate_fmt}, {elapsed} gone, {remaining} left{postfix}"
SHORT = "{desc}: {n_fmt}/{total_fmt} {unit}s, {elapsed} gone{postfix}"


def _width() -> int:
    """Columns of the terminal; 0 where it does not know, and tqdm would show no bar."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0


def _is_first() -> bool:
    return not jax.distributed.is_initialized() or jax.process_index() == 0
