"""The words of names in LaTeX commands, which consist of letters alone."""

import re
import unicodedata

DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
SYMBOLS = {
    "%": "Percent",
    "&": "And",
    "$": "Dollar",
    "#": "Number",
    "+": "Plus",
    "=": "Equals",
    "<": "Below",
    "@": "At",
}


def command_word(part: object) -> str:
    """Any text as a word of a command's name: letters a to z only, each word and digit capitalized.

    `ahb_2` gives AhbTwo, `é` E, `β` GreekSmallLetterBeta, `50%` FiveZeroPercent, ` - ` Minus.
    """
    text = unicodedata.normalize("NFKD", str(part).replace(" - ", " minus "))
    pieces = []
    for letter in text:
        if letter.isascii():
            name = SYMBOLS.get(letter) or (DIGITS[int(letter)] if letter.isdigit() else None)
            if name:
                pieces.append(f" {name} ")
            else:
                pieces.append(letter if letter.isalpha() else " ")
        elif not unicodedata.combining(letter):
            # an ideograph's number spells in digits, so that two of them don't share a name
            name = unicodedata.name(letter, f"sign {ord(letter)}").lower()
            pieces.append(f" {command_word(name)} ")
    words = re.split(r"\s+", "".join(pieces))
    return "".join(word[:1].upper() + word[1:] for word in words)
