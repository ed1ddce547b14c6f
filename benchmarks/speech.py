"""Recordings of spoken words, made on this machine: a folder that `configs/speech.py` learns from.

    apt install espeak-ng
    python -m benchmarks speech --out=data/speech

espeak-ng speaks each of `WORDS` in its voices, accents, pitches and speeds. A recording is one
second at 8,000 Hz with the word at its beginning, `train/000012.wav`, and beside it the word,
`train/000012.txt`. The splits differ in their voices: nobody who speaks in the test split speaks in
another one. The same version of espeak-ng and the same seed give the same files.
"""

import argparse
import concurrent.futures
import pathlib
import shutil
import subprocess

import numpy as np

from udd_jax.data import sounds
from udd_jax.errors import UserError
from udd_jax.runtime import files

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"),
)
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-gbclan", "en-029")
# Parts of the names of voices that are not meant to sound like people.
UNLIKE = ("robo", "robot", "demonic", "whisper", "klatt", "announcer", "fast", "grandpa", "croak")
RATE, SAMPLES = 8000, 8000
PITCHES, SPEEDS = (25, 75), (130, 190)  # as espeak-ng counts them: of 99, and words a minute
LEAD, FADE = 400, 80  # samples: silence before the word; its first and last ones are faded
QUIET = 0.02  # of the loudest sample: what is below at both ends is silence
LOUDNESS = (0.4, 0.9)  # of the loudest sample
FASTER, TRIES = 1.25, 6  # where a word is too long
HEADER = 44  # bytes of a WAV file before its samples
SPLITS = ("train", "validation", "test")
LEAST_VOICES = 10


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        "python -m benchmarks speech",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--train", type=int, default=6000, help="recordings of the training")
    parser.add_argument("--held_out", type=int, default=400, help="of each other split")
    parser.add_argument("--seed", type=int, default=0, help="of voices, pitches and speeds")
    return parser.parse_args(arguments)


def program() -> str:
    """The path of espeak-ng. UserError, one line, if it is not installed."""
    found = shutil.which("espeak-ng")
    if found is None:
        raise UserError("the recordings need the program espeak-ng: apt install espeak-ng")
    return found


def voices() -> list[str]:
    """The names of the voices of espeak-ng that sound like people, sorted."""
    listed = subprocess.run(
        [program(), "--voices=variant"], capture_output=True, text=True, check=True
    )
    # Pty Language Age/Gender VoiceName File: the file is `!v/NAME`, which may have a space.
    files_of = [line.partition("!v/")[2] for line in listed.stdout.splitlines()]
    names = {text.partition("  ")[0].strip() for text in files_of}
    found = sorted(n for n in names if n and not any(part in n.lower() for part in UNLIKE))
    if len(found) < LEAST_VOICES:
        raise UserError(
            f"espeak-ng has {len(found)} voices, expected {LEAST_VOICES}: install espeak-ng-data"
        )
    return found


def family(voice: str) -> str:
    """Voices of one family, such as steph and steph2, are variants of one speaker. f1, f2, m1 and
    the like are speakers of their own."""
    bare = voice.lower().rstrip("0123456789")
    return bare if len(bare) > 1 else voice


def of_splits(found: list[str]) -> dict[str, list[str]]:
    """{split: its voices}: of each ten families, one for the validation and two for the test."""
    families = sorted({family(voice) for voice in found})
    place = {0: "validation", 3: "test", 7: "test"}
    whose = {name: place.get(i % 10, "train") for i, name in enumerate(families)}
    return {split: [v for v in found if whose[family(v)] == split] for split in SPLITS}


def speak(word: str, voice: str, accent: str, pitch: int, speed: int, loudness: float):
    """A recording, float32[SAMPLES]. UserError if the word does not fit, or nothing is heard."""
    for _ in range(TRIES):
        asked = ["-v", f"{accent}+{voice}", "-p", str(pitch), "-s", str(speed), "--stdout", word]
        made = subprocess.run([program(), *asked], capture_output=True)
        if made.returncode:
            raise UserError(f"espeak-ng -v {accent}+{voice}: {made.stderr.decode()[:80].strip()}")
        sound, rate = sounds.read(whole(made.stdout))
        sound = sounds.fit(sound, rate, RATE, len(sound) * RATE // rate)
        heard = np.flatnonzero(abs(sound) > QUIET * abs(sound).max())
        if not len(heard):
            raise UserError(f"espeak-ng -v {accent}+{voice} says nothing for {word!r}")
        sound = sound[heard[0] : heard[-1] + 1]
        if len(sound) <= SAMPLES - LEAD:
            break
        speed = round(speed * FASTER)
    else:
        raise UserError(f"{word!r} takes more than a second as {accent}+{voice}, {speed} a minute")
    sound = sound * (loudness / abs(sound).max())
    ramp = np.linspace(0, 1, min(FADE, len(sound)), dtype=np.float32)
    sound[: len(ramp)] *= ramp
    sound[-len(ramp) :] *= ramp[::-1]
    recording = np.zeros(SAMPLES, np.float32)
    recording[LEAD : LEAD + len(sound)] = sound
    return recording


def whole(wav: bytes) -> bytes:
    """A WAV file that was written to a pipe, with its true length: espeak-ng cannot know it."""
    size = len(wav) - HEADER
    lengths = ((HEADER - 8 + size).to_bytes(4, "little"), size.to_bytes(4, "little"))
    return wav[:4] + lengths[0] + wav[8 : HEADER - 4] + lengths[1] + wav[HEADER:]


def draw(rng, own: list[str], number: int) -> dict:
    """The arguments of `speak` of a recording: its word by its number, all else by chance."""
    return {
        "word": WORDS[number % len(WORDS)],
        "voice": own[rng.integers(len(own))],
        "accent": ACCENTS[rng.integers(len(ACCENTS))],
        "pitch": int(rng.integers(*PITCHES)),
        "speed": int(rng.integers(*SPEEDS)),
        "loudness": float(rng.uniform(*LOUDNESS)),
    }


def make(out, counts: dict[str, int], seed: int = 0) -> dict[str, list[str]]:
    """Writes the recordings to the folder `out`; returns {split: its voices}.

    counts: {split: recordings}. UserError if the folder has files already, or as of `speak`.
    """
    out, found = pathlib.Path(out), of_splits(voices())
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} has files already: choose another --out=, or delete it")
    for split, own in found.items():
        rng = np.random.default_rng((seed, SPLITS.index(split)))
        asked = [draw(rng, own, number) for number in range(counts[split])]
        folder = files.folder(out / split)
        folder.mkdir(parents=True, exist_ok=True)

        def write(number, asked=asked, folder=folder):
            sounds.write_wav(folder / f"{number:06}.wav", speak(**asked[number]), RATE)
            files.write_text(folder / f"{number:06}.txt", asked[number]["word"] + "\n")

        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(write, range(counts[split])))
    return found


def main(arguments=None) -> int:
    asked = parse(arguments)
    counts = {"train": asked.train, "validation": asked.held_out, "test": asked.held_out}
    found = make(asked.out, counts, asked.seed)
    for split, own in found.items():
        print(f"{split}: {counts[split]} recordings of {len(own)} voices: {', '.join(own)}")
    return 0
