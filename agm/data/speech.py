"""Spoken words from the espeak-ng program."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from collections.abc import Iterable

import numpy as np

__all__ = ["SpeechError", "check_voices", "espeak_version", "synthesise"]


class SpeechError(RuntimeError):
    """espeak-ng is missing, lacks a voice, or gave no sound."""


def espeak_version() -> str:
    """Version of the installed espeak-ng, such as "1.51".

    Raises:
        SpeechError: espeak-ng is not installed.
    """
    # "eSpeak NG text-to-speech: 1.51  Data at: /usr/lib/..."
    return _run("--version").decode().split(":", 1)[-1].split()[0]


def check_voices(accents: Iterable[str], variants: Iterable[str]) -> None:
    """Check that espeak-ng has every accent ("en-us") and every voice variant ("f3").

    espeak-ng speaks with the plain voice where a variant does not exist and says nothing about it, so the
    variants have to be looked up.

    Raises:
        SpeechError: espeak-ng is not installed, or some do not exist.
    """
    missing = [accent for accent in accents if not _exists(accent)]
    known = {line.split("!v/", 1)[1].strip() for line in _voice_files("variant") if "!v/" in line}
    # Two columns later a line may name other languages: "!v/Storm             (en-us 5)".
    known = {name.split("  ")[0].split(" (")[0] for name in known}
    missing += [variant for variant in variants if variant not in known]
    if missing:
        raise SpeechError(
            f"Expected espeak-ng to have every voice of the dataset, but got no {', '.join(missing)} from "
            f"version {espeak_version()}. Install espeak-ng 1.51 or newer with its full voice data."
        )


def synthesise(text: str, voice: str, *, speed: int, pitch: int) -> tuple[np.ndarray, int]:
    """Speak `text`.

    Args:
        text: what to say.
        voice: accent and variant, such as "en-us+f3".
        speed: words a minute.
        pitch: 0 to 99.

    Returns:
        (T,) float64 in [-1, 1], and the sample rate in Hz.

    Raises:
        SpeechError: espeak-ng is not installed, does not know the voice, or gave silence.
    """
    output = _run("-v", voice, "-s", str(speed), "-p", str(pitch), "-a", "100", "--stdout", text)
    try:
        with wave.open(io.BytesIO(output)) as sound:
            # The header of a stream claims 2**31 - 1 bytes; readframes returns those that came.
            rate, samples = sound.getframerate(), sound.readframes(sound.getnframes())
    except (wave.Error, EOFError) as error:
        raise SpeechError(
            f"Expected espeak-ng to give a WAV file for voice {voice!r}, but got {len(output)} bytes "
            f"({error}). Check the voice with: espeak-ng -v {voice} {text}"
        ) from error
    values = np.frombuffer(samples[: len(samples) // 2 * 2], dtype="<i2") / 32768.0
    if not values.any():
        raise SpeechError(
            f"Expected espeak-ng to give sound for voice {voice!r}, but got silence. "
            f"Check the voice with: espeak-ng -v {voice} {text}"
        )
    return values, rate


def _exists(accent: str) -> bool:
    try:
        return len(synthesise("one", accent, speed=160, pitch=50)[0]) > 0
    except SpeechError:
        if shutil.which("espeak-ng") is None:
            raise
        return False


def _voice_files(kind: str) -> list[str]:
    return _run(f"--voices={kind}").decode(errors="replace").splitlines()


def _run(*arguments: str) -> bytes:
    program = shutil.which("espeak-ng")
    if program is None:
        raise SpeechError(
            "Expected the program espeak-ng to be installed, but got none on PATH. "
            "Install it (Debian and Ubuntu: apt-get install espeak-ng; macOS: brew install espeak-ng)."
        )
    done = subprocess.run([program, *arguments], capture_output=True, check=False)
    if done.returncode != 0:
        raise SpeechError(
            f"Expected espeak-ng {' '.join(arguments)} to succeed, but got exit status {done.returncode}: "
            f"{done.stderr.decode(errors='replace').strip()}. Check the installation of espeak-ng."
        )
    return done.stdout
