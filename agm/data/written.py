"""Digits written out in words of many languages, with typing mistakes, as sequences of letters."""

from __future__ import annotations

from random import Random

import numpy as np

__all__ = ["LETTERS", "SPELLINGS", "encode", "held_out", "mistype"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"

# Zero to nine, without diacritics, other scripts transliterated.
_LANGUAGES = {
    "Afrikaans": "nul een twee drie vier vyf ses sewe agt nege",
    "Azerbaijani": "sifir bir iki uc dord bes alti yeddi sekkiz doqquz",
    "Basque": "zero bat bi hiru lau bost sei zazpi zortzi bederatzi",
    "Bulgarian": "nula edno dve tri chetiri pet shest sedem osem devet",
    "Catalan": "zero un dos tres quatre cinc sis set vuit nou",
    "Croatian": "nula jedan dva tri cetiri pet sest sedam osam devet",
    "Czech": "nula jeden dva tri ctyri pet sest sedm osm devet",
    "Danish": "nul en to tre fire fem seks syv otte ni",
    "Dutch": "nul een twee drie vier vijf zes zeven acht negen",
    "English": "zero one two three four five six seven eight nine",
    "Esperanto": "nul unu du tri kvar kvin ses sep ok nau",
    "Estonian": "null uks kaks kolm neli viis kuus seitse kaheksa uheksa",
    "Finnish": "nolla yksi kaksi kolme nelja viisi kuusi seitseman kahdeksan yhdeksan",
    "French": "zero un deux trois quatre cinq six sept huit neuf",
    "Frisian": "nul ien twa trije fjouwer fiif seis san acht njoggen",
    "Galician": "cero un dous tres catro cinco seis sete oito nove",
    "German": "null eins zwei drei vier funf sechs sieben acht neun",
    "Greek": "miden ena dyo tria tessera pente exi efta okto ennea",
    "Hungarian": "nulla egy ketto harom negy ot hat het nyolc kilenc",
    "Icelandic": "null einn tveir thrir fjorir fimm sex sjo atta niu",
    "Indonesian": "nol satu dua tiga empat lima enam tujuh delapan sembilan",
    "Italian": "zero uno due tre quattro cinque sei sette otto nove",
    "Latin": "nihil unus duo tres quattuor quinque sex septem octo novem",
    "Latvian": "nulle viens divi tris cetri pieci sesi septini astoni devini",
    "Lithuanian": "nulis vienas du trys keturi penki sesi septyni astuoni devyni",
    "Luxembourgish": "null een zwee drai veier fennef sechs siwen aacht neng",
    "Malay": "kosong satu dua tiga empat lima enam tujuh lapan sembilan",
    "Norwegian": "null en to tre fire fem seks sju atte ni",
    "Polish": "zero jeden dwa trzy cztery piec szesc siedem osiem dziewiec",
    "Portuguese": "zero um dois tres quatro cinco seis sete oito nove",
    "Romanian": "zero unu doi trei patru cinci sase sapte opt noua",
    "Russian": "nol odin dva tri chetyre pyat shest sem vosem devyat",
    "Slovak": "nula jeden dva tri styri pat sest sedem osem devat",
    "Slovene": "nic ena dva tri stiri pet sest sedem osem devet",
    "Spanish": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "Swahili": "sifuri moja mbili tatu nne tano sita saba nane tisa",
    "Swedish": "noll ett tva tre fyra fem sex sju atta nio",
    "Turkish": "sifir bir iki uc dort bes alti yedi sekiz dokuz",
    "Ukrainian": "nul odyn dva try chotyry pyat shist sim visim devyat",
    "Welsh": "sero un dau tri pedwar pump chwech saith wyth naw",
}

# One tuple a digit: its spellings, each once, in alphabetical order. No spelling means two digits.
SPELLINGS: tuple[tuple[str, ...], ...] = tuple(
    tuple(sorted({words.split()[digit] for words in _LANGUAGES.values()})) for digit in range(10)
)


def held_out(spellings: tuple[str, ...], share: float, random: Random) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Parts the spellings of a digit at random: those for training, and `share` of them for testing, one at least."""
    keys = {word: random.random() for word in spellings}
    drawn = sorted(spellings, key=lambda word: keys[word])[: max(1, round(share * len(spellings)))]
    return tuple(word for word in spellings if word not in drawn), tuple(drawn)


def mistype(word: str, typos: float, random: Random) -> str:
    """The word with mistakes: each letter is, with probability `typos`, replaced, left out, preceded by another one or
    exchanged with its successor, each as often.

    More mistakes with the same random numbers contain those of fewer.
    """
    # As many random numbers whatever `typos` is. The methods other than random() may change with Python's version.
    chances = [(random.random(), int(4 * random.random()), LETTERS[int(26 * random.random())]) for _ in word]
    typed = list(word)
    for place in reversed(range(len(word))):  # from the end, so that earlier places stay where they are
        chance, mistake, letter = chances[place]
        if chance >= typos:
            continue
        if mistake == 0:
            typed[place] = letter
        elif mistake == 1:
            del typed[place]
        elif mistake == 2:
            typed.insert(place, letter)
        else:
            typed[place : place + 2] = typed[place : place + 2][::-1]
    return "".join(typed)


def encode(words: list[str], length: int) -> np.ndarray:
    """Letters as one-hot vectors: (N, length, 26) float64, zeros behind the end of a word; a longer one is cut off."""
    letters = np.zeros((len(words), length, len(LETTERS)))
    for row, word in enumerate(words):
        for place, letter in enumerate(word[:length]):
            letters[row, place, LETTERS.index(letter)] = 1.0
    return letters
